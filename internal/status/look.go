package status

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"st2ha/internal/confedit"
	"st2ha/internal/fault"
	"st2ha/internal/heal"
	"st2ha/internal/host"
	"st2ha/internal/incident"
	"st2ha/internal/mongodb"
	"st2ha/internal/mountinfo"
	"st2ha/internal/nfs"
	"st2ha/internal/probe"
	"st2ha/internal/rabbitmq"
	"st2ha/internal/reach"
	"st2ha/internal/redis"
	"st2ha/internal/service"
	"st2ha/internal/stackstorm"
	"st2ha/internal/step"
)

const recentSteps = 5 // of a node's journal

// Cluster is what is looked at.
type Cluster struct {
	Primary     string
	Secondaries []string
	Open        func(ctx context.Context, address string) (host.Host, error)
	Within      time.Duration // that a node has to answer
	Mask        *step.Masker
	Program     []byte // of the watchdog, as this pack has it; none where it cannot be read
	Now         time.Time
}

// Look asks all nodes, side by side, so that one that is dead costs no more than its own time.
func Look(ctx context.Context, c Cluster) Report {
	r := Report{At: c.Now.UTC().Truncate(time.Second)}
	addresses := append([]string{c.Primary}, c.Secondaries...)
	r.Nodes = make([]Node, len(addresses))
	program := ""
	if len(c.Program) > 0 {
		program = fingerprint(c.Program)
	}
	var group sync.WaitGroup
	for i, address := range addresses {
		n := &r.Nodes[i]
		n.Address, n.Role = address, stackstorm.RoleSecondary
		if i == 0 {
			n.Role = stackstorm.RolePrimary
		}
		group.Go(func() { ask(ctx, c, n, program) })
	}
	group.Wait()
	r.Judge()
	r.Millis = time.Since(c.Now).Milliseconds()
	return r
}

// ask opens one node and looks at it.
func ask(ctx context.Context, c Cluster, n *Node, program string) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, c.Within)
	defer cancel()
	n.Services, n.Backends, n.Shares = []Service{}, []Backend{}, []Share{}
	n.Runs, n.Heals, n.Incidents, n.Problems = []step.Recent{}, []heal.Record{}, []incident.Incident{}, []string{}
	h, err := c.Open(ctx, n.Address)
	if err == nil {
		n.Reached = true
		l := &look{Node: n, ctx: ctx, h: h, mask: c.Mask, began: began, within: c.Within, program: program}
		l.all()
		if len(l.lost) > 0 {
			n.Reached, err = false, l.lost[0]
		}
	}
	if err != nil {
		f := fault.Of(err)
		n.Error, n.Fix = c.Mask.Mask(f.Error()), c.Mask.Mask(f.Hint)
	}
	n.Millis = time.Since(began).Milliseconds()
}

// look is one node being looked at. Its questions are asked side by side over one connection.
type look struct {
	*Node
	ctx     context.Context
	h       host.Host
	mask    *step.Masker
	began   time.Time
	within  time.Duration
	program string // the beginning of the SHA-256 of this pack's watchdog

	group    sync.WaitGroup
	mu       sync.Mutex // of what follows, and of lists that several questions add to
	lost     []error    // the connection's end
	states   []service.Unit
	conf     *stackstorm.Conf
	versions Versions
}

// all asks all that there is to ask.
func (l *look) all() {
	for _, question := range []func() error{l.configuration, l.services, l.installed, l.mounts, l.clock, l.runs,
		l.heals, l.maintenance, l.incidents, l.owed, l.watchdog} {
		l.begin(question)
	}
	l.group.Wait()
	l.Versions = l.versions
	l.judgeServices()
	slices.SortFunc(l.Backends, func(a, b Backend) int {
		return strings.Compare(a.Name+" "+a.Endpoint, b.Name+" "+b.Endpoint)
	})
	slices.SortFunc(l.settings, func(a, b setting) int { return a.order - b.order })
	slices.Sort(l.Problems)
}

// begin asks one question beside the others.
func (l *look) begin(question func() error) {
	l.group.Go(func() { l.note(question()) })
}

// note notes what could not be found out, once.
func (l *look) note(err error) {
	if err == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case errors.Is(err, host.ErrDisconnected):
		l.lost = append(l.lost, err)
		return
	case l.ctx.Err() != nil: // said once, of all that was not answered
		err = fmt.Errorf("%s: not all was answered within %s", l.h.Name(), l.within)
	}
	if text := l.mask.Mask(err.Error()); !slices.Contains(l.Problems, text) {
		l.Problems = append(l.Problems, text)
	}
}

// contents are a file's, none if it does not exist.
func (l *look) contents(name string) ([]byte, error) {
	f, err := l.h.ReadFile(l.ctx, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return f.Data, err
}

// configuration reads st2.conf, and asks the servers that it names.
func (l *look) configuration() error {
	conf, err := stackstorm.LookAtConf(l.ctx, l.h)
	if conf == nil {
		return err
	}
	l.conf = conf
	l.note(err) // an odd line costs that line only
	if err := l.shares(conf); err != nil {
		l.note(err)
	}
	l.begin(l.packVersion)
	l.begin(l.database)
	l.begin(l.broker)
	l.begin(l.coordinator)
	for i, s := range agreed() {
		l.begin(func() error {
			value, err := s.value(l)
			if err != nil {
				return err
			}
			l.mu.Lock()
			defer l.mu.Unlock()
			l.settings = append(l.settings, setting{order: i, name: s.name, value: value})
			return nil
		})
	}
	return nil
}

// shares finds out which sensors the node runs, and whether the timers: by its agent's files where nodes share them, else
// by st2.conf.
func (l *look) shares(conf *stackstorm.Conf) error {
	l.Timers = conf.Timers()
	turn, err := stackstorm.Turn(l.ctx, l.h, stackstorm.TimersUnit)
	if err != nil {
		return err
	}
	if turn != nil {
		value, _ := turn.Get("timersengine", "enable")
		l.Timers = value == "True"
	}
	p, err := conf.Partition()
	if err != nil {
		return err
	}
	if turn, err = stackstorm.Turn(l.ctx, l.h, stackstorm.SensorsUnit); err != nil {
		return err
	}
	if turn != nil {
		p = stackstorm.Partition{Node: p.Node, Provider: "hash"} // none, where it is another node's turn
		if _, ok := turn.Get("sensorcontainer", "partition_provider"); ok {
			if p, err = turn.Partition(); err != nil {
				return err
			}
		}
	}
	l.Sensors = &Partition{Name: p.Node, Provider: p.Provider,
		Ranges: append([]stackstorm.Range{}, p.Ranges...)} // a list in JSON, also without any
	return nil
}

// services asks systemd for all units at once.
func (l *look) services() error {
	ask := append(stackstorm.Services(), heal.WatchdogUnit, "st2actionrunner@*")
	states, err := service.Units(l.ctx, l.h, ask...)
	l.states = states
	return err
}

// judgeServices says how the units that are meant to run are, once st2.conf is known, too.
func (l *look) judgeServices() {
	for _, unit := range stackstorm.Services() {
		i := slices.IndexFunc(l.states, func(s service.Unit) bool { return s.Unit == unit+".service" })
		if i < 0 || !l.states[i].Enabled {
			continue
		}
		s := l.states[i]
		result := Service{Unit: unit, State: s.Active, Good: s.Active == "active"}
		switch {
		case l.conf != nil && l.conf.SwitchedOff(unit) && s.Active == "inactive":
			result.Good, result.Detail = true, "switched off by st2.conf"
		case s.Active == "inactive" && l.waits(unit):
			result.Good, result.Detail = true, "another node's turn"
		case !result.Good:
			result.Detail = s.Sub
		case unit == "st2actionrunner": // it is active as soon as it has started the workers
			up, all := l.workers()
			result.Detail = fmt.Sprintf("%d of %d workers", up, all)
			result.Good = up == all && all > 0
		}
		l.Services = append(l.Services, result)
	}
	if l.Sensors != nil {
		s, ok := l.service("st2sensorcontainer")
		l.Sensors.Active = ok && s.State == "active"
	}
	if s, ok := l.service("st2timersengine"); !ok || s.State != "active" {
		l.Timers = l.Timers && ok // what is not enabled runs none
	}
	for _, s := range l.states {
		if s.Unit == heal.WatchdogUnit {
			l.Watchdog.Active = s.Active == "active"
		}
	}
}

// waits says whether a unit rightly does not run, for nodes share it.
func (l *look) waits(unit string) bool {
	waiting, err := stackstorm.Waiting(l.ctx, l.h, unit)
	return err == nil && waiting
}

// workers counts the action runner's that are active, and all.
func (l *look) workers() (up, all int) {
	for _, s := range l.states {
		if strings.HasPrefix(s.Unit, "st2actionrunner@") {
			all++
			if s.Active == "active" {
				up++
			}
		}
	}
	return up, all
}

func (l *look) installed() error {
	version, python, err := stackstorm.Installed(l.ctx, l.h)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.versions.StackStorm, l.versions.Python = version, python
	return err
}

var packVersion = regexp.MustCompile(`(?m)^version:\s*["']?([^"'\s#]+)`)

// packVersion reads the version of this pack, as StackStorm on the node sees it.
func (l *look) packVersion() error {
	for _, dir := range l.conf.PackDirs() {
		// In a process of its own: of a mount that hangs the one that reads all other files would wait for ever.
		ctx, cancel := l.before()
		data, err := l.h.Run(ctx, nil, "cat", path.Join(dir, "st2ha/pack.yaml"))
		cancel()
		switch {
		case errors.As(err, new(*host.ExitError)):
			continue
		case ctx.Err() != nil && l.ctx.Err() == nil && err != nil:
			return fmt.Errorf("%s: %s does not answer: does its mount hang?", l.h.Name(), dir)
		case err != nil:
			return err
		}
		if m := packVersion.FindSubmatch(data); m != nil {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.versions.Pack = string(m[1])
			return nil
		}
	}
	return nil
}

// mounts compares /etc/fstab with what PID 1 has mounted, and asks the servers.
func (l *look) mounts() error {
	data, err := l.contents("/etc/fstab")
	if err != nil {
		return err
	}
	list, err := confedit.Fstab(data)
	l.note(step.Located(l.h, "/etc/fstab", err)) // an odd line costs that line only
	list = slices.DeleteFunc(list, func(m confedit.Mount) bool {
		return m.Type != "nfs" && m.Type != "nfs4" || m.ByHand()
	})
	if len(list) == 0 {
		return nil
	}
	table, err := l.h.ReadFile(l.ctx, "/proc/1/mountinfo")
	if err != nil {
		return err
	}
	mounted, err := mountinfo.Parse(table.Data)
	if err != nil {
		return fmt.Errorf("%s: /proc/1/mountinfo: %w", l.h.Name(), err)
	}
	servers := map[string]bool{}
	for _, m := range list {
		l.Shares = append(l.Shares, Share{Path: m.Target, Source: m.Source,
			Mounted: slices.ContainsFunc(mounted, func(k mountinfo.Mount) bool {
				return k.Point == m.Target && k.FSType != "autofs"
			})})
		servers[nfs.Server(m.Source)] = true
	}
	for server := range servers {
		l.try("nfs", server, func(ctx context.Context) error { return nfs.Answers(ctx, l.h, server) })
	}
	return nil
}

func (l *look) clock() error {
	ahead, accuracy, err := host.Clock(l.ctx, l.h)
	if err == nil {
		l.Clock = &Clock{Ahead: millis(ahead), Accuracy: millis(accuracy)}
	}
	return err
}

// millis are a duration's, to a tenth.
func millis(d time.Duration) float64 { return float64(d.Round(100*time.Microsecond)) / 1e6 }

func (l *look) runs() error {
	runs, err := step.RecentSteps(l.ctx, l.h, recentSteps)
	l.Runs = append(l.Runs, runs...)
	return err
}

func (l *look) heals() error {
	heals, err := heal.Records(l.ctx, l.h)
	l.Heals = append(l.Heals, heals...)
	return err
}

func (l *look) maintenance() error {
	m, err := heal.ReadMaintenance(l.ctx, l.h, time.Now())
	if m.On {
		l.Maintenance = &m
	}
	return err
}

// incidents reads what the node's watchdog has down.
func (l *look) incidents() error {
	data, err := l.contents(path.Join(step.StateDir, incident.FileName))
	if err != nil || len(data) == 0 {
		return err
	}
	if json.Unmarshal(data, &l.Incidents) != nil {
		l.Incidents = []incident.Incident{} // torn; the watchdog begins anew, too
	}
	return nil
}

func (l *look) owed() (err error) {
	l.RestartOwed, err = stackstorm.Pending(l.ctx, l.h)
	return err
}

// watchdog compares the program with this pack's, by its fingerprint.
func (l *look) watchdog() error {
	if _, err := l.h.Stat(l.ctx, heal.WatchdogProgram); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	l.Watchdog.Installed = true
	out, err := l.h.Run(l.ctx, nil, "sha256sum", heal.WatchdogProgram)
	if err != nil {
		return fmt.Errorf("%s: %w", l.h.Name(), err)
	}
	sum, _, _ := strings.Cut(string(out), " ")
	l.Watchdog.Program = sum[:min(len(sum), fingerprintLength)]
	l.Watchdog.Current = l.program == "" || l.program == l.Watchdog.Program
	return nil
}

const fingerprintLength = 12

// fingerprint is enough of a SHA-256 to tell two files apart.
func fingerprint(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])[:fingerprintLength]
}

// database logs in to each server of [database].
func (l *look) database() error {
	db, err := l.conf.Database()
	if err != nil {
		return err
	}
	for _, addr := range db.Servers {
		l.try("mongodb", addr, func(ctx context.Context) error { return mongodb.Login(ctx, l.h, db.Server, addr, "admin") })
	}
	return nil
}

// broker logs in to each node of [messaging].
func (l *look) broker() error {
	logins, err := l.conf.Brokers()
	for _, login := range logins {
		l.try("rabbitmq", login.Addr, func(ctx context.Context) error {
			conn, err := rabbitmq.Dial(ctx, l.h, login)
			if err == nil {
				_ = conn.Close()
			}
			return err
		})
	}
	return err
}

// coordinator asks the Redis of [coordination]; another kind cannot be asked.
func (l *look) coordinator() error {
	server, err := redis.ParseURL(l.conf.Coordination())
	if err != nil {
		return nil // what is compared says what there is
	}
	if server.TLS != nil {
		server.TLS.Read = func(ctx context.Context, name string) ([]byte, error) {
			f, err := l.h.ReadFile(ctx, name)
			return f.Data, err
		}
	}
	l.try("redis", server.Addr, func(ctx context.Context) error {
		conn, err := redis.Dial(ctx, l.h, server)
		if err != nil {
			return err
		}
		defer conn.Close()
		_, err = conn.Ask(ctx, "PING")
		return err
	})
	return nil
}

// before ends before the node's time does, so that it is a server or a mount that is said to be silent, and not the node.
func (l *look) before() (context.Context, context.CancelFunc) {
	return context.WithDeadline(l.ctx, l.began.Add(l.within*9/10))
}

// try asks a server, and notes how it is.
func (l *look) try(name, addr string, ask func(ctx context.Context) error) {
	l.begin(func() error {
		ctx, cancel := l.before()
		defer cancel()
		began := time.Now()
		err := ask(ctx)
		if errors.Is(err, host.ErrDisconnected) {
			return err
		}
		b := Backend{Name: name, Endpoint: l.known(addr), Millis: millis(time.Since(began))}
		verdict, reason := reach.Classify(err)
		if ctx.Err() != nil && err != nil {
			verdict, reason = reach.Silent, reach.NoAnswer
		}
		if errors.Is(err, mongodb.ErrRefused) {
			reason = mongodb.ErrRefused.Error()
		}
		b.State = map[reach.Verdict]string{reach.Good: Up, reach.Bad: Down, reach.Silent: Silent,
			reach.Unknown: Unknown}[verdict]
		b.Reason = l.mask.Mask(reason)
		l.mu.Lock()
		defer l.mu.Unlock()
		l.Backends = append(l.Backends, b)
		return nil
	})
}

// known is host:port as the other nodes know it: loopback is this node.
func (l *look) known(addr string) string {
	if _, port, err := net.SplitHostPort(addr); err == nil && probe.OnLoopback(addr) {
		return net.JoinHostPort(l.Address, port)
	}
	return addr
}
