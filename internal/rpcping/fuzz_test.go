package rpcping

import (
	"bytes"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
)

// walkReply is the answer to a walk to /opt/stackstorm/packs, which is there.
var walkReply = append(appendWords(nil, lastFragment|92, 7, 1, 0, 0, 0, 0),
	appendWords(nil, 0, 0, 5, opPutRootFH, 0, opLookup, 0, opLookup, 0, opLookup, 0, opGetAttr, 0, 1, attrType,
		4, dirType)...)

// Whatever a server sends, it is read or refused, and never more is taken than
// the limits allow.
func FuzzReply(f *testing.F) {
	f.Add(walkReply)
	f.Add(appendWords(nil, lastFragment|24, 7, 1, 0, 0, 0, 0))                          // NULL
	f.Add(appendWords(nil, lastFragment|32, 7, 1, 0, 0, 0, 2, 4, 4))                    // other versions only
	f.Add(appendWords(nil, lastFragment|20, 7, 1, 1, 1, 5))                             // too weak
	f.Add(appendWords(nil, lastFragment|48, 7, 1, 0, 0, 0, 0, 2, 0, 1, opPutRootFH, 2)) // no such export
	f.Add(appendWords(nil, lastFragment|36, 7, 1, 0, 0, 0, 0, 10018, 0, 0))             // refused as a whole
	f.Add(appendWords(nil, 4, 7, lastFragment|20, 1, 0, 0, 0, 0))                       // fragments
	f.Add(appendWords(nil, 0, 0, 0))                                                    // empty ones
	f.Add([]byte("SSH-2.0-OpenSSH_9.2p1\r\n"))
	names := []string{"opt", "stackstorm", "packs"}
	f.Fuzz(func(t *testing.T, stream []byte) {
		record, err := readRecord(bytes.NewReader(stream))
		if err != nil {
			return
		}
		require.LessOrEqual(t, len(record), maxRecord)
		r, err := parseReply(record)
		if err != nil {
			require.ErrorIs(t, err, ErrProtocol)
			return
		}
		if r.err != nil {
			require.NotEmpty(t, r.err.Error())
			return
		}
		var at *StatusError
		if err := parseWalk(r.result, names); err != nil && !errors.As(err, &at) {
			require.ErrorIs(t, err, ErrProtocol)
		}
	})
}

func TestWalkReply(t *testing.T) {
	record, err := readRecord(bytes.NewReader(walkReply))
	require.NoError(t, err)
	r, err := parseReply(record)
	require.NoError(t, err)
	names := []string{"opt", "stackstorm", "packs"}
	require.NoError(t, parseWalk(r.result, names))
	require.ErrorIs(t, parseWalk(r.result, names[:2]), ErrProtocol, "an answer to another call")
	for cut := range r.result {
		require.Error(t, parseWalk(r.result[:cut], names), "%d bytes", cut)
	}
}
