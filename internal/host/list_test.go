package host

import (
	"encoding/binary"
	"io"
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/pkg/sftp"
	"github.com/stretchr/testify/require"
)

// A server whose directory has no end is left, and takes no memory for good.
func TestEndlessDirectory(t *testing.T) {
	near, far := net.Pipe()
	go func() {
		defer far.Close()
		// draft-ietf-secsh-filexfer-02: a packet is its length, type and, but for
		// the first, id.
		say := func(kind byte, body []byte) bool {
			packet := binary.BigEndian.AppendUint32(nil, uint32(1+len(body)))
			_, err := far.Write(append(append(packet, kind), body...))
			return err == nil
		}
		text := func(b []byte, s string) []byte {
			return append(binary.BigEndian.AppendUint32(b, uint32(len(s))),
				s...)
		}
		const names = 1000
		for {
			head := make([]byte, 5)
			if _, err := io.ReadFull(far, head); err != nil {
				return
			}
			rest := make([]byte, binary.BigEndian.Uint32(head)-1)
			if _, err := io.ReadFull(far, rest); err != nil {
				return
			}
			ok := true
			switch id := rest[:4]; head[4] {
			case 1: // INIT
				ok = say(2, []byte{0, 0, 0, 3})
			case 11: // OPENDIR
				ok = say(102, text(append([]byte{}, id...), "h"))
			case 12: // READDIR
				body := binary.BigEndian.AppendUint32(append([]byte{}, id...), names)
				for range names {
					body = append(text(text(body, "name"), string(make([]byte, 100))), 0, 0, 0, 0)
				}
				ok = say(104, body)
			case 4: // CLOSE
				ok = say(101, text(text(append(append([]byte{}, id...), 0, 0, 0, 0), ""), ""))
			}
			if !ok {
				return
			}
		}
	}()
	heard := &meter{r: near}
	client, err := sftp.NewClientPipe(heard, near)
	require.NoError(t, err)
	defer client.Close()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	end := time.AfterFunc(30*time.Second, func() { near.Close() })
	_, err = (&files{Client: client, heard: heard}).list(t.Context(), "/x")
	require.ErrorIs(t, err, errLongList)
	require.True(t, end.Stop(), "it was left")
	runtime.ReadMemStats(&after)
	require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(2<<30))
	require.Empty(t, heard.left)
}
