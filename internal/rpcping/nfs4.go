package rpcping

import (
	"fmt"
	"path"
	"strings"
)

// Status is an nfsstat4 (RFC 7530, section 13).
type Status uint32

// The states a walk to an export ends with.
const (
	Perm     Status = 1
	NoEnt    Status = 2
	IO       Status = 5
	Access   Status = 13
	NotDir   Status = 20
	Stale    Status = 70
	Delay    Status = 10008
	WrongSec Status = 10016
	Resource Status = 10018
)

var statusNames = map[Status]string{
	Perm: "NFS4ERR_PERM", NoEnt: "NFS4ERR_NOENT", IO: "NFS4ERR_IO", Access: "NFS4ERR_ACCESS", NotDir: "NFS4ERR_NOTDIR",
	Stale: "NFS4ERR_STALE", Delay: "NFS4ERR_DELAY", WrongSec: "NFS4ERR_WRONGSEC", Resource: "NFS4ERR_RESOURCE",
}

// String is the name in the RFC, or the number.
func (s Status) String() string {
	if name, ok := statusNames[s]; ok {
		return name
	}
	return fmt.Sprintf("nfsstat4 %d", uint32(s))
}

// StatusError is an operation of the walk that the server refused.
type StatusError struct {
	At     string // how far the walk had come, e.g. /opt/stackstorm
	Status Status
}

// Error names both.
func (e *StatusError) Error() string { return e.At + ": " + e.Status.String() }

// Operations of NFSv4.0 (RFC 7530, section 16).
const (
	opGetAttr   = 9
	opLookup    = 15
	opPutRootFH = 24
)

const (
	maxPath  = 1 << 10 // bytes of a path: PATH_MAX of Linux is four times that, a COMPOUND of every server holds this
	maxName  = 255     // bytes of a component
	attrType = 1 << 1  // FATTR4_TYPE in the first word of a bitmap4
	dirType  = 2       // NF4DIR
)

// components splits an absolute path; the root has none.
func components(export string) ([]string, error) {
	clean := path.Clean(export)
	if !path.IsAbs(export) || len(clean) > maxPath {
		return nil, fmt.Errorf("%q must be an absolute path of at most %d bytes", export, maxPath)
	}
	if clean == "/" {
		return nil, nil
	}
	names := strings.Split(clean[1:], "/")
	for _, name := range names {
		if len(name) > maxName || strings.ContainsRune(name, 0) {
			return nil, fmt.Errorf("%q is no path", export)
		}
	}
	return names, nil
}

// encodeWalk returns the arguments of a COMPOUND that looks up each name from
// the server's root and asks what is there.
func encodeWalk(names []string) []byte {
	b := appendString(nil, "")                  // tag
	b = appendWords(b, 0, uint32(len(names)+2)) // minor version, number of operations
	b = appendWords(b, opPutRootFH)
	for _, name := range names {
		b = appendString(appendWords(b, opLookup), name)
	}
	return appendWords(b, opGetAttr, 1, attrType)
}

// parseWalk reads the answer to encodeWalk(names): nil when a directory is
// there, a *StatusError when the server says no.
func parseWalk(result []byte, names []string) error {
	d := &decoder{rest: result}
	status := Status(d.word())
	d.opaque(maxRecord) // tag
	count := d.word()
	if d.failed || count > uint32(len(names)+2) {
		return fmt.Errorf("%w: a COMPOUND of %d operations", ErrProtocol, count)
	}
	at := "/"
	for i := range int(count) {
		want := uint32(opLookup)
		switch i {
		case 0:
			want = opPutRootFH
		case len(names) + 1:
			want = opGetAttr
		default:
			at = path.Join(at, names[i-1])
		}
		op, s := d.word(), Status(d.word())
		if d.failed || op != want {
			return fmt.Errorf("%w: operation %d where %d was asked for", ErrProtocol, op, want)
		}
		if s != 0 {
			return &StatusError{At: at, Status: s}
		}
	}
	if status != 0 { // refused as a whole, before its first operation
		return &StatusError{At: at, Status: status}
	}
	if int(count) != len(names)+2 {
		return fmt.Errorf("%w: %d operations of %d", ErrProtocol, count, len(names)+2)
	}
	return parseType(d, at)
}

// parseType reads what GETATTR tells of the type.
func parseType(d *decoder, at string) error {
	var bitmap [3]uint32
	words := d.word()
	if words > uint32(len(bitmap)) {
		return fmt.Errorf("%w: a bitmap of %d words", ErrProtocol, words)
	}
	for i := range words {
		bitmap[i] = d.word()
	}
	values := &decoder{rest: d.opaque(maxRecord)}
	kind := values.word()
	if d.failed || values.failed || bitmap != [3]uint32{attrType} {
		return fmt.Errorf("%w: no type among the attributes", ErrProtocol)
	}
	if kind != dirType {
		return &StatusError{At: at, Status: NotDir}
	}
	return nil
}
