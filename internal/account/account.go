// Package account compares the numbers of StackStorm's users and groups between nodes, for NFS knows numbers only, and
// brings a node's in line with another's.
package account

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"st2ha/internal/host"
	"st2ha/internal/stackstorm"
)

// The databases of users and groups, as getent(1) calls them.
const (
	Users  = "passwd"
	Groups = "group"
)

// ID is the number of a user or a group on a node.
type ID struct {
	Database string // Users or Groups
	Name     string
	Number   int
}

// Kind is what the number is called: uid or gid.
func (id ID) Kind() string {
	if id.Database == Users {
		return "uid"
	}
	return "gid"
}

// Noun is "user" or "group".
func (id ID) Noun() string {
	if id.Database == Users {
		return "user"
	}
	return "group"
}

// Needed says whether no node works without it: StackStorm's packages make these two.
func (id ID) Needed() bool {
	return id.Database == Users && id.Name == "st2" || id.Database == Groups && id.Name == "st2packs"
}

// Wanted are the users and groups that nodes of a cluster share, without their numbers: those of StackStorm's packages,
// and the system user, as whom actions run.
func Wanted(systemUser string) []ID {
	return slices.Compact([]ID{{Database: Groups, Name: "st2packs"}, {Database: Groups, Name: systemUser},
		{Database: Groups, Name: "st2"}, {Database: Users, Name: "st2"}, {Database: Users, Name: systemUser}})
}

// SystemUser is [system_user] of a node's st2.conf; its default, where the file cannot be read.
func SystemUser(ctx context.Context, h host.Host) string {
	conf, _ := stackstorm.LookAtConf(ctx, h)
	if conf == nil {
		return stackstorm.DefaultSystemUser
	}
	return conf.SystemUser()
}

// Read returns those of the wanted that a node has, in their order.
func Read(ctx context.Context, h host.Host, wanted []ID) ([]ID, error) {
	var found []ID
	for _, database := range []string{Users, Groups} {
		names := []string{"getent", database}
		for _, id := range wanted {
			if id.Database == database && !slices.Contains(names[2:], id.Name) {
				names = append(names, id.Name)
			}
		}
		all, err := lookUp(ctx, h, names...)
		if err != nil {
			return nil, err
		}
		found = append(found, all...)
	}
	order := func(id ID) int {
		return slices.IndexFunc(wanted, func(w ID) bool { return w.Database == id.Database && w.Name == id.Name })
	}
	slices.SortStableFunc(found, func(a, b ID) int { return order(a) - order(b) })
	return found, nil
}

// lookUp is getent, which ends with another status where it does not find all, and still says what it found.
func lookUp(ctx context.Context, h host.Host, argv ...string) ([]ID, error) {
	out, err := h.Run(ctx, nil, argv...)
	if err != nil && !errors.As(err, new(*host.ExitError)) {
		return nil, fmt.Errorf("%s: look up %s: %w", h.Name(), strings.Join(argv[1:], " "), err)
	}
	var found []ID
	for line := range strings.Lines(string(out)) {
		fields := strings.Split(strings.TrimSpace(line), ":")
		if len(fields) < 3 {
			continue
		}
		number, err := strconv.Atoi(fields[2])
		if err != nil {
			return nil, fmt.Errorf("%s: %s %s: %w", h.Name(), argv[1], fields[0], err)
		}
		found = append(found, ID{argv[1], fields[0], number})
	}
	return found, nil
}

// Get returns the one of a database and name, if it is there.
func Get(all []ID, database, name string) (ID, bool) {
	i := slices.IndexFunc(all, func(id ID) bool { return id.Database == database && id.Name == name })
	if i < 0 {
		return ID{}, false
	}
	return all[i], true
}
