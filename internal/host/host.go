// Package host is the machine a step acts on: this one, or another over SSH.
// Steps see only the Host interface, so that none of them has a code path of
// its own for remote hosts.
package host

import (
	"context"
	"fmt"
	"io/fs"
	"net"
	"strings"
)

// Host is one machine. Every implementation acts as root on it. All methods
// end when their context does. A path is absolute.
type Host interface {
	Files

	// Name is the address the host was asked for by, as it appears in
	// messages and in the output.
	Name() string
	// IsLocal says whether the host is the machine this process runs on.
	IsLocal() bool
	// Run runs a program, never through a shell, and returns its standard
	// output. A program that ends with another status than 0 is an *ExitError.
	// The locale is C; secrets go through stdin.
	Run(ctx context.Context, stdin []byte, argv ...string) ([]byte, error)
	// DialContext connects from the host, so that its loopback and its
	// firewall's view can be reached. It has the form drivers ask for.
	DialContext(ctx context.Context, network, addr string) (net.Conn, error)
	// Lock takes the lock file at path exclusively and returns its release.
	// It is released when the holder dies or its connection ends. A lock held by
	// somebody else is a *LockedError at once. note says who holds the lock from
	// now on, for the errors of others. It is in the file, durably, until the
	// release: a note in a file that nobody has locked is that of a holder that died.
	Lock(ctx context.Context, path, note string) (release func(), err error)
	// Close ends the connection to the host.
	Close() error
}

// Files is a host's file system. A path that does not exist is fs.ErrNotExist.
// A symbolic link that others than root can have made is followed only to what
// is theirs; any other is the fault "foreign_link", and nothing has changed.
type Files interface {
	// Resolve returns a path without its symbolic links. Its last element need
	// not exist.
	Resolve(ctx context.Context, path string) (string, error)
	// ReadFile reads a regular file, following symbolic links.
	ReadFile(ctx context.Context, path string) (File, error)
	// WriteFile replaces or creates a file: a temporary file beside it, fsync,
	// rename, fsync of the directory. A reader sees the old bytes or the new
	// ones, also after a power cut. The mode and owner are those of the
	// argument; ACLs and extended attributes of a file that exists are kept. A
	// symbolic link is kept, and the file it points to replaced. Missing
	// directories are not made.
	WriteFile(ctx context.Context, f File) error
	// Stat follows symbolic links.
	Stat(ctx context.Context, path string) (Info, error)
	// ReadDir returns the names in a directory, sorted.
	ReadDir(ctx context.Context, path string) ([]string, error)
	// Mkdir makes one directory, mode and owner as in the argument, and syncs
	// its parent. One that exists is fs.ErrExist.
	Mkdir(ctx context.Context, path string, info Info) error
	// Rename moves a file or directory within a file system and syncs both
	// parents. A target that exists is fs.ErrExist.
	Rename(ctx context.Context, from, to string) error
	// Remove removes a file or an empty directory and syncs its parent.
	Remove(ctx context.Context, path string) error
	// Sweep removes the temporary files that a WriteFile of path left beside it
	// when it was killed. Only who holds the host's lock may call it: the
	// temporary file of a WriteFile that is at work looks the same.
	Sweep(ctx context.Context, path string) error
}

// Info is what the kernel says of a file, as far as a step has to keep it.
type Info struct {
	Mode fs.FileMode // type, permissions, setuid, setgid and sticky bits
	UID  int
	GID  int
	Size int64 // bytes
}

// File is a file's contents with what has to be kept of it.
type File struct {
	Path string
	Data []byte
	Mode fs.FileMode // permissions, setuid, setgid and sticky bits; no type
	UID  int
	GID  int
}

// ExitError is a program that ran and ended with another status than 0.
type ExitError struct {
	Program string // argv[0] and a sub-command at most: arguments may be long
	Code    int    // exit status; 128 + number for a signal
	Stderr  string
}

// Error is one line: the program, its status, and the first and last line of what it said.
func (e *ExitError) Error() string {
	said := strings.TrimSpace(e.Stderr)
	if lines := strings.Split(said, "\n"); len(lines) > 1 {
		said = strings.TrimSpace(lines[0]) + " … " + strings.TrimSpace(lines[len(lines)-1])
	}
	if said == "" {
		return fmt.Sprintf("%s ended with status %d", e.Program, e.Code)
	}
	return fmt.Sprintf("%s ended with status %d: %s", e.Program, e.Code, said)
}

// NoNote is the Holder of a lock that has no note: one that is just being taken
// or released has none for a moment.
const NoNote = "somebody who left no note"

// LockedError is a lock that somebody else holds.
type LockedError struct {
	Path   string
	Holder string // the holder's note
}

// Error names the holder.
func (e *LockedError) Error() string {
	return fmt.Sprintf("%s is held by %s", e.Path, e.Holder)
}
