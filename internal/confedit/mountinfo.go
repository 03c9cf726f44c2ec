package confedit

import (
	"slices"
	"strings"
)

// Mounted is one line of /proc/self/mountinfo: a mount as the kernel has it.
type Mounted struct {
	Root         string   // the directory of the file system that is mounted
	MountPoint   string   // where
	FSType       string   // e.g. nfs4
	Source       string   // device, or host:/path for NFS
	Options      []string // of this mount, e.g. rw
	SuperOptions []string // of the file system, e.g. vers=4.2
}

// MountInfo reads /proc/<pid>/mountinfo as proc(5) has it. Of two mounts on one
// mount point the later hides the earlier.
func MountInfo(src []byte) ([]Mounted, error) {
	var out []Mounted
	for n, l := range lines(src) {
		// The kernel separates by one space, and the source can be empty.
		f := strings.Split(string(src[l.start:l.end]), " ")
		sep := -1
		if len(f) > 6 {
			sep = slices.Index(f[6:], "-") + 6
		}
		if sep < 6 || len(f) < sep+4 {
			return nil, refuse(n+1, "not a line of mountinfo")
		}
		out = append(out, Mounted{
			Root:         unescapeOctal(f[3]),
			MountPoint:   unescapeOctal(f[4]),
			Options:      strings.Split(f[5], ","),
			FSType:       unescapeOctal(f[sep+1]),
			Source:       unescapeOctal(f[sep+2]),
			SuperOptions: strings.Split(strings.Join(f[sep+3:], " "), ","),
		})
	}
	return out, nil
}
