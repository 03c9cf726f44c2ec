// Package mountinfo reads the kernel's table of mounts.
package mountinfo

import (
	"fmt"
	"slices"
	"strings"

	"st2ha/internal/confedit"
)

// Mount is one line of /proc/PID/mountinfo: a mount as the kernel has it.
type Mount struct {
	Root         string   // the directory of the file system that is mounted
	Point        string   // where
	FSType       string   // e.g. nfs4
	Source       string   // device, or host:/path for NFS
	Options      []string // of this mount, e.g. rw
	SuperOptions []string // of the file system, e.g. vers=4.2
}

// Parse reads /proc/PID/mountinfo as proc(5) has it. Of two mounts on one mount
// point the later hides the earlier.
func Parse(table []byte) ([]Mount, error) {
	var all []Mount
	for line := range strings.Lines(string(table)) {
		// The kernel separates by one space, and the source can be empty.
		f := strings.Split(strings.TrimSuffix(line, "\n"), " ")
		sep := -1
		if len(f) > 6 {
			sep = slices.Index(f[6:], "-") + 6
		}
		if sep < 6 || len(f) < sep+4 {
			return nil, fmt.Errorf("line %d is not a line of mountinfo", len(all)+1)
		}
		all = append(all, Mount{
			Root:         confedit.Unescape(f[3]),
			Point:        confedit.Unescape(f[4]),
			Options:      strings.Split(f[5], ","),
			FSType:       confedit.Unescape(f[sep+1]),
			Source:       confedit.Unescape(f[sep+2]),
			SuperOptions: strings.Split(strings.Join(f[sep+3:], " "), ","),
		})
	}
	return all, nil
}
