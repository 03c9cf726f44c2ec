// Package reach says what an error of a connection to a server shows: a server
// that is ill, one that is not heard of, or nothing at all. Whoever watches or
// heals goes by it, so that nobody restarts a server for what is not its fault.
package reach

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"

	"st2ha/internal/fault"
	"st2ha/internal/host"
	"st2ha/internal/rpcping"
	"st2ha/internal/secure"
)

// Verdict is what can be made of an attempt to use a server.
type Verdict int

// The verdicts.
const (
	Good    Verdict = iota // it answered as it should
	Silent                 // no answer in time: slow, frozen or cut off
	Bad                    // an answer, and a wrong one: refused, login refused, export withdrawn
	Unknown                // nothing was found out of the server: heals nothing
)

// NoAnswer is the reason of silence without an error of its own; who knows since
// when adds that.
const NoAnswer = "no answer"

// Classify says what an error of a connection shows, and why, in words without
// the server's address; for all backends alike. Unknown is this side's own
// trouble (a name that cannot be resolved; no address, port, descriptor or memory
// left: connect(2), socket(2); an SSH connection that ended, or whose sshd did not
// make the connection), and a server that cannot be asked with the settings there
// are.
func Classify(err error) (Verdict, string) {
	var unaskable *secure.UnaskableError
	var name *net.DNSError
	var rejected *rpcping.RejectedError
	var number syscall.Errno
	var timeout interface{ Timeout() bool }
	var op *net.OpError
	var other *fault.Error // in the way of asking, such as an sshd that forbids forwarding
	switch {
	case err == nil:
		return Good, ""
	case errors.As(err, &unaskable):
		return Unknown, unaskable.Why
	case errors.As(err, &name): // before timeouts, which it may be as well
		return Unknown, fmt.Sprintf("the name %s cannot be resolved: %s", name.Name, name.Err)
	case errors.Is(err, host.ErrDisconnected), errors.Is(err, host.ErrNotTried), errors.As(err, &other):
		return Unknown, err.Error()
	case errors.Is(err, context.Canceled):
		return Unknown, "this side has ended the connection"
	case errors.Is(err, rpcping.ErrProtocol):
		return Bad, rpcping.ErrProtocol.Error()
	case errors.As(err, &rejected):
		return Bad, rejected.Error()
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTDOWN):
		errors.As(err, &number)
		return Silent, number.Error()
	case errors.As(err, &timeout) && timeout.Timeout(): // a connection's end among them: TCP has given it up
		return Silent, NoAnswer
	case errors.Is(err, rpcping.ErrClosed):
		return Bad, rpcping.ErrClosed.Error()
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.ECONNABORTED),
		errors.Is(err, syscall.EPIPE):
		errors.As(err, &number)
		return Bad, number.Error()
	case errors.As(err, &number):
		return Unknown, "no connection can be made: " + number.Error()
	// net.ErrClosed as well: where the server has ended it, a library closes its side, and who writes then hears of that.
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed):
		return Bad, "the connection was closed"
	case errors.As(err, &op):
		return Bad, op.Err.Error()
	}
	return Bad, err.Error()
}
