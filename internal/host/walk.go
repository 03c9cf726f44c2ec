package host

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"syscall"
)

// Root writes into directories that belong to others: /etc/rabbitmq is
// rabbitmq's, who can turn a file or a directory in it into a link at any
// moment. So a path is followed once, element by element, and all that is done
// is done in the directory that was reached. A link is followed if only root
// can have made it, or if it leads to what belongs to whoever can.

// directory is one that a walk has reached. Its methods go by the directory
// itself, not by a name of it that may have become another's.
type directory interface {
	// info is the directory's own.
	info() Info
	// lstat is what lstat(2) says of a name in it, with the target of a link.
	lstat(name string) (Info, string, error)
	// enter reaches a directory in it, and no link.
	enter(name string) (directory, error)
	// close ends the use of it.
	close()
}

// spot is where a walk has ended: a name in a directory.
type spot struct {
	dir    directory
	base   string // "." if the path ends on the directory itself
	real   string // the path without links
	exists bool
	info   Info // of what exists
}

// walk follows name from root, its last element only if last is set. That
// element need not exist. own is the user who acts, beside root. The caller
// closes the spot's directory; root is closed here if it is not that.
func walk(root directory, name string, last bool, own int) (_ spot, err error) {
	way, names := []directory{root}, []string{""}
	back := func(to int) {
		for _, d := range way[to:] {
			d.close()
		}
		way, names = way[:to], names[:to]
	}
	defer func() {
		if err != nil {
			back(0)
			return
		}
		for _, d := range way[:len(way)-1] {
			d.close()
		}
	}()
	var via foreignError // the first link that others can have made
	var by []party
	arrive := func(s spot) (spot, error) {
		s.dir = way[len(way)-1]
		s.real = path.Join("/", strings.Join(names, "/"), s.base)
		for _, p := range by {
			if !p.has(s) {
				via.by, via.to = p, s.real
				return spot{}, &via
			}
		}
		return s, nil
	}
	rest := elements(name)
	for links := 0; len(rest) > 0; {
		here, element := way[len(way)-1], rest[0]
		rest = rest[1:]
		if element == "." {
			continue
		}
		if element == ".." {
			back(max(len(way)-1, 1))
			continue
		}
		info, target, err := here.lstat(element)
		if errors.Is(err, fs.ErrNotExist) && len(rest) == 0 {
			return arrive(spot{base: element})
		}
		if err != nil {
			return spot{}, err
		}
		if info.Mode&fs.ModeSymlink != 0 && (len(rest) > 0 || last) {
			if links++; links > 40 {
				return spot{}, syscall.ELOOP
			}
			if who := makers(here.info(), info, own); len(who) > 0 {
				if by == nil {
					via.link = path.Join("/", strings.Join(names, "/"), element)
				}
				by = append(by, who...)
			}
			if path.IsAbs(target) {
				back(1)
			}
			rest = append(elements(target), rest...)
			continue
		}
		if len(rest) == 0 {
			return arrive(spot{base: element, exists: true, info: info})
		}
		next, err := here.enter(element)
		if err != nil {
			return spot{}, err
		}
		way, names = append(way, next), append(names, element)
	}
	return arrive(spot{base: ".", exists: true, info: way[len(way)-1].info()})
}

func elements(name string) []string {
	return strings.FieldsFunc(name, func(r rune) bool { return r == '/' })
}

// party is who, other than root, may put something in the place of a file.
type party struct {
	id    int
	group bool
	all   bool
}

// String names the party as messages do.
func (p party) String() string {
	switch {
	case p.all:
		return "everybody"
	case p.group:
		return fmt.Sprintf("group %d", p.id)
	}
	return fmt.Sprintf("user %d", p.id)
}

// makers are those who can have put a thing where it is in a directory: its
// owner, and whoever may write it. In a sticky one only a thing's own owner
// can (unlink(2)).
func makers(dir, thing Info, own int) (who []party) {
	foreign := func(uid int) bool { return uid != 0 && uid != own }
	if foreign(dir.UID) {
		who = append(who, party{id: dir.UID})
	}
	if dir.Mode&fs.ModeSticky != 0 {
		if foreign(thing.UID) && thing.UID != dir.UID {
			who = append(who, party{id: thing.UID})
		}
		return who
	}
	if dir.Mode&0o020 != 0 && dir.GID != 0 {
		who = append(who, party{id: dir.GID, group: true})
	}
	if dir.Mode&0o002 != 0 {
		who = append(who, party{all: true})
	}
	return who
}

// has says whether the party could do with the spot what root does for it:
// directory and file are its own, or what is there is a directory of its own.
func (p party) has(s spot) bool {
	owns := func(i Info) bool {
		if p.group {
			return i.GID == p.id && i.Mode&0o020 != 0
		}
		return !p.all && i.UID == p.id
	}
	if s.exists && s.info.Mode.IsDir() && owns(s.info) {
		return true
	}
	return owns(s.dir.info()) && (!s.exists || owns(s.info))
}

// foreignError is a link to something that does not belong to those who can have made the link.
type foreignError struct {
	link, to string
	by       party
}

// Error names both ends.
func (e *foreignError) Error() string {
	return fmt.Sprintf("%s is a link that %s can have made, and leads to %s, which is not theirs", e.link, e.by, e.to)
}

// errSwapped is a file that somebody replaced between the moment when it was
// checked and the one when it was to be used.
var errSwapped = errors.New("somebody replaced it meanwhile")
