// Command tree prints one line for each file below the given directories, sorted, so that two states of a node can
// be compared byte for byte:
//
//	MODE OWNER GROUP TYPE PATH [SHA256 | -> TARGET]
//
// Two names of one file each have their line. A directory's own line is there too; times are not. What a running
// node changes by itself (databases, logs, seeds) is left out, and what is mounted below a directory as well.
//
// Each system call takes a lab node long, so sums are kept in /run/lab-tree for files that are still the same: the same
// inode, size and ctime, which no program can set. A ctime that was young when the file was read is not trusted.
package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// volatile is left out unless named itself.
var volatile = []string{
	"/etc/.updated", "/etc/adjtime", "/etc/ld.so.cache", "/etc/mtab", "/etc/resolv.conf",
	"/opt/stackstorm/st2/__pycache__",
	"/run/systemd/units",
	"/var/.updated", "/var/backups", "/var/cache", "/var/lib/apt", "/var/lib/dpkg", "/var/lib/mongodb", "/var/lib/nfs",
	"/var/lib/private", "/var/lib/rabbitmq", "/var/lib/redis", "/var/lib/sudo", "/var/lib/systemd", "/var/lib/ucf",
	"/var/log", "/var/tmp",
}

// sums are what was read, now and by earlier calls; kept is where they lie until the next boot.
var sums = map[string]sum{}

const kept = "/run/lab-tree"

// young is an age of a ctime in which another write may have the same one.
const young = 2 * time.Second

// sum is that of a file's contents, and what tells whether the file is still the same.
type sum struct {
	Device, Inode uint64
	Size, Changed int64 // bytes; ctime in nanoseconds
	SHA256        string
}

func main() {
	flag.Parse()
	if data, err := os.ReadFile(kept); err == nil {
		_ = json.Unmarshal(data, &sums) // what cannot be read is read anew
	}
	out := bufio.NewWriter(os.Stdout)
	failed := false
	for _, dir := range flag.Args() {
		if err := walk(out, filepath.Clean(dir)); err != nil {
			fmt.Fprintln(os.Stderr, "tree:", err)
			failed = true
		}
	}
	if data, err := json.Marshal(sums); err == nil {
		_ = os.WriteFile(kept, data, 0o600)
	}
	if err := out.Flush(); err != nil || failed {
		os.Exit(1)
	}
}

// contents returns the sum of a file's contents.
func contents(path string, st *syscall.Stat_t) (string, error) {
	now := sum{Device: st.Dev, Inode: st.Ino, Size: st.Size, Changed: st.Ctim.Nano()}
	before := sums[path]
	now.SHA256 = before.SHA256
	if now == before {
		return now.SHA256, nil
	}
	delete(sums, path)
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	now.SHA256 = fmt.Sprintf("%x", h.Sum(nil))
	if age := time.Since(time.Unix(0, now.Changed)); age > young {
		sums[path] = now
	}
	return now.SHA256, nil
}

func walk(out io.Writer, top string) error {
	var device uint64
	return filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			if os.IsNotExist(err) { // gone meanwhile, or never there: as good as an empty tree
				return nil
			}
			return err
		}
		if path != top {
			for _, v := range volatile {
				if path == v {
					if d.IsDir() {
						return fs.SkipDir
					}
					return nil
				}
			}
		}
		info, err := d.Info()
		if err != nil {
			if os.IsNotExist(err) {
				return nil
			}
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		if path == top {
			device = st.Dev
		}
		line, err := describe(path, info, st)
		if err != nil {
			return err
		}
		if st.Dev != device { // a mount: its line says so, its content is another machine's or the kernel's
			fmt.Fprintln(out, line, "(mount)")
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		fmt.Fprintln(out, line)
		return nil
	})
}

func describe(path string, info fs.FileInfo, st *syscall.Stat_t) (string, error) {
	var kind, more string
	switch info.Mode().Type() {
	case 0:
		hash, err := contents(path, st)
		if err != nil {
			return "", err
		}
		kind, more = "f", " "+hash
	case fs.ModeDir:
		kind = "d"
	case fs.ModeSymlink:
		target, err := os.Readlink(path)
		if err != nil {
			return "", err
		}
		kind, more = "l", " -> "+quote(target)
	case fs.ModeNamedPipe:
		kind = "p"
	case fs.ModeSocket:
		kind = "s"
	default:
		kind, more = "c", fmt.Sprintf(" %d", st.Rdev)
	}
	return fmt.Sprintf("%04o %s %s %s %s%s", st.Mode&0o7777, owner(st.Uid), group(st.Gid), kind, quote(path), more), nil
}

// quote keeps a line one line and its fields apart.
func quote(s string) string {
	if strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == '"' || r == 0x7f }) {
		return strconv.Quote(s)
	}
	return s
}

var owners, groups = map[uint32]string{}, map[uint32]string{}

func owner(id uint32) string {
	if owners[id] == "" {
		owners[id] = strconv.Itoa(int(id))
		if u, err := user.LookupId(owners[id]); err == nil {
			owners[id] = u.Username
		}
	}
	return owners[id]
}

func group(id uint32) string {
	if groups[id] == "" {
		groups[id] = strconv.Itoa(int(id))
		if g, err := user.LookupGroupId(groups[id]); err == nil {
			groups[id] = g.Name
		}
	}
	return groups[id]
}
