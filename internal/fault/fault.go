// Package fault is the one error form that people and programs see: a code, a
// line that says what was wrong and where, and what to do about it.
package fault

import (
	"errors"
	"fmt"
)

// Exit codes of the st2ha binary.
const (
	ExitDone       = 0 // brought about, or already in place
	ExitFailed     = 1 // failed, and what was changed is undone
	ExitUsage      = 2 // a parameter is missing or wrong; nothing was changed
	ExitPreflight  = 3 // the hosts are not as the step needs them; nothing was changed
	ExitUndoFailed = 4 // failed, and not all of it could be undone
	ExitUnsaid     = 5 // brought about, but the result could not be printed
)

// Error carries the exit code, a stable code for programs and the remedy.
type Error struct {
	Exit int    // one of the Exit constants
	Code string // stable and machine readable, e.g. "host_key"
	Hint string // what to do; empty when the message says it all
	Err  error  // what was being done, where, and what was wrong
}

// Error returns the message without the hint.
func (e *Error) Error() string { return e.Err.Error() }

// Unwrap makes errors.Is and errors.As see the cause.
func (e *Error) Unwrap() error { return e.Err }

// Usage is a parameter that is missing or wrong.
func Usage(format string, args ...any) *Error {
	return &Error{Exit: ExitUsage, Code: "usage", Err: fmt.Errorf(format, args...)}
}

// Preflight is a host that is not as a step needs it.
func Preflight(code, hint, format string, args ...any) *Error {
	return &Error{Exit: ExitPreflight, Code: code, Hint: hint, Err: fmt.Errorf(format, args...)}
}

// Failed is something that went wrong while a step was applied or proved.
func Failed(code, hint, format string, args ...any) *Error {
	return &Error{Exit: ExitFailed, Code: code, Hint: hint, Err: fmt.Errorf(format, args...)}
}

// Of returns the outermost Error in err's chain, or err as a plain failure.
func Of(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		// The outer layers' words belong to the message.
		return &Error{Exit: e.Exit, Code: e.Code, Hint: e.Hint, Err: err}
	}
	return &Error{Exit: ExitFailed, Code: "failed", Err: err}
}
