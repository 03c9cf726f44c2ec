// Package rpcping asks an NFS server whether it answers, and whether it still
// exports a directory, over one TCP connection: the NULL call of ONC RPC
// (RFC 5531) and a walk to the export by NFSv4.0 (RFC 7530). It needs no NFS in
// this node's kernel, mounts nothing and changes nothing on the server.
package rpcping

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

const (
	program = 100003 // NFS

	maxRecord    = 4 << 10 // bytes of an answer; those to these calls have some 100
	maxFragments = 16      // of a record; servers send one
	lastFragment = 1 << 31 // RFC 5531, section 11
	maxOpaque    = 400     // bytes of a verifier, section 8.2
)

// MismatchError is a server that speaks NFS, but not the version of the call.
type MismatchError struct {
	Low, High uint32 // the versions it speaks
}

// Error names the versions.
func (e *MismatchError) Error() string {
	if e.Low == e.High {
		return fmt.Sprintf("the server speaks NFS version %d only", e.Low)
	}
	return fmt.Sprintf("the server speaks NFS versions %d to %d only", e.Low, e.High)
}

// RejectedError is a call that was answered, and not carried out.
type RejectedError struct {
	Reason string
	// NoExport says that the credentials were called bad, which is how Linux's
	// server answers a node that nothing is exported to.
	NoExport bool
}

// Error is the reason.
func (e *RejectedError) Error() string { return e.Reason }

// ErrProtocol is an answer that no NFS server gives.
var ErrProtocol = errors.New("the answer is not one of an NFS server")

const authBadCred = 1

// authStats are RFC 5531's auth_stat, as far as they say more than a number.
var authStats = map[uint32]string{
	authBadCred: "bad credentials",
	2:           "rejected credentials",
	3:           "bad verifier",
	4:           "rejected verifier",
	5:           "credentials too weak: the server wants another security flavor, or a source port below 1024",
}

// appendString appends an XDR string or variable-length opaque (RFC 4506, section 4.10).
func appendString(b []byte, s string) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
	b = append(b, s...)
	return append(b, make([]byte, -len(s)&3)...)
}

// appendWords appends XDR unsigned integers.
func appendWords(b []byte, words ...uint32) []byte {
	for _, w := range words {
		b = binary.BigEndian.AppendUint32(b, w)
	}
	return b
}

// encodeCall returns the record of one call in one fragment. cred is the
// credential's flavor and body.
func encodeCall(xid, version, procedure uint32, cred, args []byte) []byte {
	const call, rpcVersion = 0, 2
	b := appendWords(make([]byte, 4, 128), xid, call, rpcVersion, program, version, procedure)
	b = append(b, cred...)
	b = appendWords(b, 0, 0) // the verifier: AUTH_NONE
	b = append(b, args...)
	binary.BigEndian.PutUint32(b, lastFragment|uint32(len(b)-4))
	return b
}

// authNone and authSys are the credentials of the two calls: nobody's, and
// root's (RFC 5531, appendix A), which most servers squash.
func authNone() []byte { return appendWords(nil, 0, 0) }

func authSys() []byte {
	body := appendWords(nil, 0)        // stamp
	body = appendString(body, "st2ha") // machine name
	body = appendWords(body, 0, 0, 0)  // uid, gid, no further gids
	return appendString(appendWords(nil, 1), string(body))
}

// readRecord reads one record with its fragments.
func readRecord(r io.Reader) ([]byte, error) {
	var record []byte
	for range maxFragments {
		var mark [4]byte
		if _, err := io.ReadFull(r, mark[:]); err != nil {
			return nil, err
		}
		size := binary.BigEndian.Uint32(mark[:])
		last := size&lastFragment != 0
		size &^= lastFragment
		if size > maxRecord-uint32(len(record)) {
			return nil, fmt.Errorf("%w: a record of more than %d bytes", ErrProtocol, maxRecord)
		}
		at := len(record)
		record = append(record, make([]byte, size)...)
		if _, err := io.ReadFull(r, record[at:]); err != nil {
			return nil, err
		}
		if last {
			return record, nil
		}
	}
	return nil, fmt.Errorf("%w: a record of more than %d fragments", ErrProtocol, maxFragments)
}

// decoder reads XDR; once it has failed it gives zeros.
type decoder struct {
	rest   []byte
	failed bool
}

func (d *decoder) word() uint32 {
	if len(d.rest) < 4 {
		d.rest, d.failed = nil, true
		return 0
	}
	w := binary.BigEndian.Uint32(d.rest)
	d.rest = d.rest[4:]
	return w
}

func (d *decoder) opaque(limit uint32) []byte {
	n := d.word()
	padded := uint64(n) + uint64(-n&3)
	if n > limit || padded > uint64(len(d.rest)) {
		d.rest, d.failed = nil, true
		return nil
	}
	b := d.rest[:n]
	d.rest = d.rest[padded:]
	return b
}

// reply is one answer: the result, or how the server refused the call.
type reply struct {
	xid    uint32
	result []byte
	err    error // a *MismatchError or *RejectedError
}

// parseReply reads a reply's header (RFC 5531, section 9). Its error is one
// after which the connection is of no use.
func parseReply(record []byte) (reply, error) {
	const isReply, accepted, denied = 1, 0, 1
	d := &decoder{rest: record}
	r := reply{xid: d.word()}
	if kind := d.word(); d.failed || kind != isReply {
		return reply{}, fmt.Errorf("%w: not a reply", ErrProtocol)
	}
	switch status := d.word(); {
	case d.failed:
	case status == accepted:
		d.word() // the verifier's flavor
		d.opaque(maxOpaque)
		r.err = acceptStat(d)
	case status == denied:
		r.err = rejectStat(d)
	default:
		return reply{}, fmt.Errorf("%w: reply status %d", ErrProtocol, status)
	}
	if d.failed {
		return reply{}, fmt.Errorf("%w: it is cut short", ErrProtocol)
	}
	if r.err == nil {
		r.result = d.rest
	}
	return r, nil
}

func acceptStat(d *decoder) error {
	switch status := d.word(); status {
	case 0:
		return nil
	case 1:
		return &RejectedError{Reason: "the program there is not NFS"}
	case 2:
		return &MismatchError{Low: d.word(), High: d.word()}
	case 5:
		return &RejectedError{Reason: "the server has an internal error (SYSTEM_ERR)"}
	default: // PROC_UNAVAIL and GARBAGE_ARGS: not to these calls
		return &RejectedError{Reason: fmt.Sprintf("the server does not take the call (accept_stat %d)", status)}
	}
}

func rejectStat(d *decoder) error {
	if d.word() == 0 {
		return &RejectedError{Reason: fmt.Sprintf("the server speaks RPC versions %d to %d only", d.word(), d.word())}
	}
	status := d.word()
	if words, ok := authStats[status]; ok {
		return &RejectedError{Reason: words, NoExport: status == authBadCred}
	}
	return &RejectedError{Reason: fmt.Sprintf("credentials refused (auth_stat %d)", status)}
}
