package account

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"st2ha/internal/fault"
	"st2ha/internal/host"
	"st2ha/internal/stackstorm"
	"st2ha/internal/step"
)

// Align is the step align_ids: the numbers of a node's users and groups become the primary's, and its files keep their
// owners by name. A number is moved files first, then the entry: so a run that was killed is gone on with by the next
// one, which still sees what is to be moved.
type Align struct {
	Primary    host.Host
	SystemUser bool // the system user as well
	InAction   bool // StackStorm runs this program
	Restart    stackstorm.Restarter
}

// Name is align_ids.
func (s *Align) Name() string { return "align_ids" }

// aim is a number that is to become another one.
type aim struct {
	ID
	to int
}

// aims are what differs from the primary, and what a node lacks.
func (s *Align) aims(ctx context.Context, h host.Host) (all []aim, missing []ID, err error) {
	wanted := Wanted(SystemUser(ctx, s.Primary))
	if !s.SystemUser {
		wanted = Wanted("st2")
	}
	theirs, err := Read(ctx, s.Primary, wanted)
	if err != nil {
		return nil, nil, err
	}
	own, err := Read(ctx, h, wanted)
	if err != nil {
		return nil, nil, err
	}
	for _, id := range wanted {
		a, there := Get(theirs, id.Database, id.Name)
		b, here := Get(own, id.Database, id.Name)
		switch {
		case id.Needed() && !here:
			missing = append(missing, id)
		case there && here && a.Number != b.Number:
			all = append(all, aim{b, a.Number})
		}
	}
	return all, missing, nil
}

// Check refuses what would be lost, and what stands in the way.
func (s *Align) Check(ctx context.Context, h host.Host) ([]step.Finding, error) {
	if h.Name() == s.Primary.Name() {
		return nil, fault.Usage("host and primary are both %s: give the secondary whose numbers are to change", h.Name())
	}
	all, missing, err := s.aims(ctx, h)
	if err != nil || len(all) == 0 && len(missing) == 0 {
		return nil, err
	}
	var found []step.Finding
	add := func(check, fix, format string, args ...any) {
		found = append(found, step.Finding{Severity: step.Error, Host: h.Name(), Check: check,
			Message: fmt.Sprintf(format, args...), Fix: fix})
	}
	for _, id := range missing {
		add("ids", "install StackStorm on the node first; its packages create it", "%s has no entry %s", id.Database, id.Name)
	}
	if s.InAction && h.IsLocal() {
		add("own_services", "run it in a shell there: sudo actions/st2ha align_ids --host="+h.Name()+" --primary="+
			s.Primary.Name(), "this action runs on the node whose st2 services it has to stop")
	}
	held, err := holders(ctx, h, all)
	if err != nil {
		return nil, err
	}
	_, taken := order(all, held)
	for _, a := range taken {
		add("id_taken", fmt.Sprintf("give %s another number, or align the nodes the other way round by hand",
			strings.Join(held[key{a.Database, a.to}], ", ")), "%s %d, which %s %s has on the primary, belongs to %s here",
			a.Kind(), a.to, a.Noun(), a.Name, strings.Join(held[key{a.Database, a.to}], ", "))
	}
	for _, a := range all {
		if names := held[key{a.Database, a.Number}]; len(names) > 1 {
			add("id_shared", "give each a number of its own, and its files",
				"%s %d belongs to %s: whose files are whose cannot be told", a.Kind(), a.Number, strings.Join(names, " and "))
		}
	}
	busy, err := processes(ctx, h, all)
	if err != nil {
		return nil, err
	}
	for _, p := range busy {
		add("processes", "end it, then run this again; a login as that user ends with its session", "%s", p)
	}
	capable, err := capabilities(ctx, h, all)
	if err != nil {
		return nil, err
	}
	for _, line := range capable {
		add("capabilities", "note them, take them away with setcap -r, and set them again afterwards",
			"%s: a change of owner takes the capabilities of a file away", line)
	}
	return found, nil
}

// Plan stops the services, moves the numbers one by one, and starts the services.
func (s *Align) Plan(ctx context.Context, h host.Host) ([]step.Change, error) {
	all, _, err := s.aims(ctx, h)
	if err != nil {
		return nil, err
	}
	var changes []step.Change
	if len(all) > 0 {
		held, err := holders(ctx, h, all)
		if err != nil {
			return nil, err
		}
		moves, _ := order(all, held)
		changes = append(changes, &stackstorm.Stop{})
		special := map[ID][]Special{} // of those that are moved twice, after the first time
		for _, m := range moves {
			if err := m.look(ctx, h, len(held[key{m.Database, m.To}]) == 0); err != nil {
				return nil, err
			}
			m.Special = append(m.Special, special[ID{m.Database, m.Name, m.From}]...)
			special[ID{m.Database, m.Name, m.To}] = m.Special
			changes = append(changes, m)
		}
	}
	restart := s.Restart
	restart.Force = len(all) > 0
	more, err := restart.Plan(ctx, h)
	return append(changes, more...), err
}

// Verify reads the numbers again, and waits for the services.
func (s *Align) Verify(ctx context.Context, h host.Host) error {
	all, _, err := s.aims(ctx, h)
	if err != nil {
		return err
	}
	for _, a := range all {
		return fault.Failed("ids", "run it again", "%s: %s %s has %s %d, and %d on the primary", h.Name(), a.Noun(), a.Name,
			a.Kind(), a.Number, a.to)
	}
	return s.Restart.Verify(ctx, h)
}

// key is a number in its database.
type key struct {
	database string
	number   int
}

// holders are the names that have a number on a node: all that it lists, and those that it only knows when asked for a
// number, as some directories do.
func holders(ctx context.Context, h host.Host, all []aim) (map[key][]string, error) {
	held := map[key][]string{}
	for _, database := range []string{Users, Groups} {
		asked := []string{"getent", database}
		for _, a := range all {
			if a.Database == database {
				asked = append(asked, strconv.Itoa(a.to), strconv.Itoa(a.Number))
			}
		}
		for _, argv := range [][]string{asked[:2], asked} {
			listed, err := lookUp(ctx, h, argv...)
			if err != nil {
				return nil, err
			}
			for _, id := range listed {
				k := key{database, id.Number}
				if !slices.Contains(held[k], id.Name) {
					held[k] = append(held[k], id.Name)
				}
			}
		}
	}
	return held, nil
}

// lastNumber is where a number is looked for that nobody has, downwards: below those of nobody and of containers.
const lastNumber = 59999

// order makes moves of aims, so that a number is free when something is moved to it: of a ring, one is moved aside
// first. It is the same ring, and the same number aside, for the next run of one that was killed. taken are those whose
// number is somebody else's.
func order(all []aim, held map[key][]string) (moves []*Move, taken []aim) {
	now := map[key]bool{}
	for k := range held {
		now[k] = true
	}
	left := slices.Clone(all)
	move := func(a aim, to int) {
		moves = append(moves, &Move{Database: a.Database, Name: a.Name, From: a.Number, To: to})
		delete(now, key{a.Database, a.Number})
		now[key{a.Database, to}] = true
	}
	for len(left) > 0 {
		if i := slices.IndexFunc(left, func(a aim) bool { return !now[key{a.Database, a.to}] && a.to > 0 }); i >= 0 {
			move(left[i], left[i].to)
			left = slices.Delete(left, i, i+1)
			continue
		}
		ours := func(a aim) bool {
			return slices.ContainsFunc(left, func(b aim) bool { return b.Database == a.Database && b.Number == a.to })
		}
		if i := slices.IndexFunc(left, func(a aim) bool { return !ours(a) }); i >= 0 {
			taken = append(taken, left[i])
			left = slices.Delete(left, i, i+1)
			continue
		}
		aside := lastNumber
		for now[key{left[0].Database, aside}] {
			aside--
		}
		move(left[0], aside)
		left[0].Number = aside
	}
	return moves, taken
}

// processes are those of users that are to be moved, but for what the st2 services run: usermod refuses then, and they
// would go on under a number that is nobody's.
func processes(ctx context.Context, h host.Host, all []aim) ([]string, error) {
	unit := regexp.MustCompile(`(?m)/st2[a-z]+(@[^/]*)?\.service(/|$)`) // in /proc/PID/cgroup: it ends with the service
	var found []string
	for _, a := range all {
		if a.Database != Users {
			continue
		}
		out, err := h.Run(ctx, nil, "pgrep", "-u", strconv.Itoa(a.Number))
		var exit *host.ExitError
		if errors.As(err, &exit) && exit.Code == 1 {
			continue // none
		}
		if err != nil {
			return nil, fmt.Errorf("%s: look for processes of %s: %w", h.Name(), a.Name, err)
		}
		for _, pid := range strings.Fields(string(out)) {
			group, err := h.ReadFile(ctx, "/proc/"+pid+"/cgroup")
			if err != nil || unit.Match(group.Data) {
				continue // ended meanwhile, or will be
			}
			comm, _ := h.ReadFile(ctx, "/proc/"+pid+"/comm")
			found = append(found, fmt.Sprintf("process %s (%s) runs as %s", pid, strings.TrimSpace(string(comm.Data)), a.Name))
		}
	}
	return found, nil
}

// capabilities are the files with some among those that are to be moved, as getcap(8) says it. Where that is not
// installed nobody has set any by its companion either.
func capabilities(ctx context.Context, h host.Host, all []aim) ([]string, error) {
	if _, err := h.Run(ctx, nil, "getcap", "/"); errors.Is(err, exec.ErrNotFound) {
		return nil, nil
	}
	var found []string
	for _, a := range all {
		out, err := findAll(ctx, h, a.Database, a.Number, "-type", "f", "-exec", "getcap", "{}", "+")
		if err != nil {
			return nil, err
		}
		for _, o := range out {
			found = append(found, strings.FieldsFunc(o, func(r rune) bool { return r == '\n' })...)
		}
	}
	return found, nil
}
