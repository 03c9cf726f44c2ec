// Package memexec runs a program from a copy of itself in memory.
package memexec

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Run starts this program anew from a copy in memory, with the same
// process id, arguments and environment, when its file lies on another machine:
// a pack's directory is one of those that a secondary mounts. Otherwise the
// mount that it has to watch would stop it with the next page of its code, or
// with the next process that it starts of itself. The copy has the program's
// name, as ps and pgrep show it. It returns nil when there is nothing to do;
// after an error the program can go on as it is. Call it first in main.
func Run() error {
	const self = "/proc/self/exe"
	var stat unix.Statfs_t
	if err := unix.Statfs(self, &stat); err != nil {
		return fmt.Errorf("statfs of the program: %w", err)
	}
	switch stat.Type { // statfs(2)
	case unix.NFS_SUPER_MAGIC, unix.FUSE_SUPER_MAGIC, unix.CIFS_SUPER_MAGIC, unix.CEPH_SUPER_MAGIC:
	default:
		return nameCopy()
	}
	err := execCopy(self)
	return fmt.Errorf("run the program from memory: %w", err)
}

// nameCopy gives a copy in memory the name that its file would have given it: exec
// of /proc/self/fd/6 makes it "6" (proc_pid_comm(5)).
func nameCopy() error {
	program, err := os.Readlink("/proc/self/exe")
	if err != nil || !strings.HasPrefix(program, "/memfd:") {
		return err
	}
	return os.WriteFile("/proc/self/comm", []byte(filepath.Base(os.Args[0])), 0)
}

// execCopy returns only with an error.
func execCopy(program string) error {
	from, err := os.Open(program)
	if err != nil {
		return err
	}
	defer from.Close()
	const name = "st2ha-watch"
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_EXEC)
	if err == unix.EINVAL { // Linux before 6.3 has no flag for it, and needs none
		fd, err = unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	}
	if err != nil {
		return err
	}
	to := os.NewFile(uintptr(fd), name)
	defer to.Close()
	if _, err := io.Copy(to, from); err != nil {
		return err
	}
	return unix.Exec(fmt.Sprintf("/proc/self/fd/%d", fd), os.Args, os.Environ())
}
