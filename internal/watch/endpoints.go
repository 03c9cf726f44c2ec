package watch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"st2ha/internal/confedit"
	"st2ha/internal/host"
	"st2ha/internal/mongodb"
	"st2ha/internal/nfs"
	"st2ha/internal/probe"
	"st2ha/internal/rabbitmq"
	"st2ha/internal/redis"
	"st2ha/internal/secure"
	"st2ha/internal/stackstorm"
	"st2ha/internal/step"
)

// Files are what the endpoints of a node come from, beside the pack's configuration.
func Files() []string { return []string{stackstorm.ConfPath, fstabPath, exportsPath} }

const (
	fstabPath   = "/etc/fstab"
	exportsPath = "/etc/exports"
)

// Found is what a node uses.
type Found struct {
	// Node is this node's address as other nodes know it, which is how actions
	// reach it; empty if it cannot be told.
	Node      string
	Endpoints []probe.Endpoint
	Brokers   []rabbitmq.Login // the nodes of the message bus
	Problems  []error          // what cannot be found out, beside all else
}

// finder finds the endpoints of a node.
type finder struct {
	Config
	Found
	host    host.Host
	members *Members
}

// Find returns what a node uses. members are those of the replica set that were
// heard of so far, and hear of more by the endpoints; nil where that is not asked for.
func Find(ctx context.Context, h host.Host, c Config, members *Members) Found {
	f := &finder{Config: c, host: h, members: members}
	conf, err := stackstorm.LookAtConf(ctx, h)
	if conf != nil || c.MongoDB == "" || c.RabbitMQ == "" {
		f.problem(err) // an odd line costs that line only
	}
	f.mongodb(ctx, conf)
	f.rabbitmq(ctx, conf)
	f.redis(ctx, conf)
	f.units(ctx, conf)
	f.mounts(ctx)
	slices.SortFunc(f.Endpoints, func(a, b probe.Endpoint) int {
		return cmp.Or(cmp.Compare(a.Backend, b.Backend), cmp.Compare(a.Name, b.Name))
	})
	f.Endpoints = slices.CompactFunc(f.Endpoints, func(a, b probe.Endpoint) bool { return a.Key() == b.Key() })
	f.Node = f.address(ctx)
	return f.Found
}

// address is the address that this node speaks to another one from, or else
// the one at which a backend of its own serves others.
func (f *finder) address(ctx context.Context) string {
	own := ""
	for _, e := range f.Endpoints {
		if e.Host != "" {
			// No packet is sent: the kernel looks up the route (connect(2) on UDP).
			conn, err := new(net.Dialer).DialContext(ctx, "udp", net.JoinHostPort(e.Host, "9"))
			if err != nil {
				continue
			}
			defer conn.Close()
			return conn.LocalAddr().(*net.UDPAddr).IP.String()
		}
		if name, _, err := net.SplitHostPort(e.Name); err == nil {
			if ip := net.ParseIP(name); ip != nil && !ip.IsLoopback() {
				own = name
			}
		}
	}
	return own
}

func (f *finder) problem(err error) {
	if err != nil {
		f.Problems = append(f.Problems, err)
	}
}

// add adds an endpoint at host:port.
func (f *finder) add(ctx context.Context, b string, addr string, watch probe.Func) {
	f.Endpoints = append(f.Endpoints, probe.Endpoint{Backend: b, Name: addr, Host: f.machine(ctx, addr), Watch: watch})
}

// machine is the host of host:port; empty for this node.
func (f *finder) machine(ctx context.Context, addr string) string {
	name, _, err := net.SplitHostPort(addr)
	if err != nil {
		name = addr
	}
	if local, err := host.IsLocal(ctx, name); err == nil && local {
		return ""
	}
	return name
}

func (f *finder) mongodb(ctx context.Context, conf *stackstorm.Conf) {
	var server mongodb.Server
	var servers []string
	switch {
	case f.MongoDB != "":
		var err error
		server = MongoDBServer(f.MongoDB, f.contents)
		servers, err = MongoDBServers(server.URI)
		f.problem(err)
	case conf != nil:
		db, err := conf.Database()
		if err != nil {
			f.problem(err)
			return
		}
		server, servers = db.Server, db.Servers
	}
	for _, addr := range servers {
		f.add(ctx, "mongodb", addr, WatchMongoDB(MongoDBSettings{Server: server, Addr: addr, Timing: f.Timing(), Members: f.members}))
	}
	for _, m := range f.members.Of(servers) {
		looking, cancel := context.WithTimeout(ctx, time.Second) // its name may be known to nobody here
		f.add(looking, "mongodb", m.Addr, resolved(m.Addr, func(d secure.ContextDialer) probe.Func {
			return WatchMongoDB(MongoDBSettings{Server: server, Addr: m.Addr, Arbiter: m.Arbiter, Dialer: d, Timing: f.Timing()})
		}))
		cancel()
	}
}

func (f *finder) rabbitmq(ctx context.Context, conf *stackstorm.Conf) {
	var logins []rabbitmq.Login
	var err error
	switch {
	case f.RabbitMQ != "":
		if logins, err = conf.MessagingLogins(strings.Split(f.RabbitMQ, ",")); err != nil {
			err = fmt.Errorf("watch_rabbitmq_urls: %w", err)
		}
	case conf != nil:
		logins, err = conf.Brokers()
	}
	f.problem(err)
	for _, l := range logins {
		f.Brokers = append(f.Brokers, l)
		f.add(ctx, "rabbitmq", l.Addr, WatchRabbitMQ(RabbitMQSettings{Login: l, Timing: f.Timing()}))
	}
}

func (f *finder) redis(ctx context.Context, conf *stackstorm.Conf) {
	text := f.Redis
	if text == "" {
		if conf == nil {
			return
		}
		text = conf.Coordination()
		// Other coordinators are none of what is watched.
		if u, err := url.Parse(text); err == nil && u.Scheme != "redis" && u.Scheme != "rediss" {
			return
		}
	}
	server, err := redis.ParseURL(text)
	if err != nil {
		f.problem(err)
		return
	}
	if server.TLS != nil {
		server.TLS.Read = f.contents
	}
	f.add(ctx, "redis", server.Addr, WatchRedis(RedisSettings{Server: server, Timing: f.Timing()}))
}

func (f *finder) units(ctx context.Context, conf *stackstorm.Conf) {
	s := UnitsSettings{Host: f.host, Units: f.Units}
	if len(s.Units) == 0 {
		if conf == nil {
			return
		}
		var err error
		if s.Units, err = stackstorm.Units(ctx, f.host); err != nil {
			f.problem(err)
			return
		}
	}
	if conf != nil {
		s.Prefix = conf.Prefix()
	}
	if len(f.Brokers) > 0 {
		s.Login, s.Dialer = f.Brokers[0], &net.Dialer{}
	}
	f.Endpoints = append(f.Endpoints, UnitEndpoints(s)...)
}

// mounts finds NFS mounts, their servers, and this node's own server.
func (f *finder) mounts(ctx context.Context) {
	exports := map[string][]string{} // by server
	for _, source := range f.NFS {
		addExport(exports, source)
	}
	points := map[string]string{} // sources by mount point
	for _, p := range f.Mounts {
		points[p] = ""
	}
	list, err := f.fstab(ctx)
	f.problem(err)
	for _, m := range list {
		if m.Type != "nfs" && m.Type != "nfs4" {
			continue
		}
		if _, given := points[m.Target]; given || len(f.Mounts) == 0 && !byHand(m) {
			points[m.Target] = m.Source
		}
		if len(f.NFS) == 0 && !byHand(m) {
			addExport(exports, m.Source)
		}
	}
	own, err := f.exports(ctx)
	f.problem(err)
	if own && len(f.NFS) == 0 {
		// No export is asked for: it is exported to others, and not to this node.
		exports[nfs.Server("localhost:/")] = nil
	}
	for server, paths := range exports {
		s := f.nfsSettings()
		s.Version3 = func(export string) bool { return mountedBy3(server, export) }
		f.add(ctx, "nfs", server, NFSServer(server, paths, s))
	}
	for point, source := range points {
		s := DefaultMountSettings()
		s.Source = source
		e := probe.Endpoint{Backend: "mount", Name: point, Watch: NFSMount(point, s)}
		if source != "" {
			e.Host = f.machine(ctx, nfs.Server(source))
		}
		f.Endpoints = append(f.Endpoints, e)
	}
}

// byHand says whether a mount is there only when somebody mounts it (mount(8), noauto).
func byHand(m confedit.Mount) bool {
	return slices.Contains(m.Options, "noauto") && !slices.Contains(m.Options, "x-systemd.automount")
}

func (f *finder) nfsSettings() NFSSettings {
	s := DefaultNFSSettings()
	t := f.Timing()
	s.Interval, s.Timeout = cmp.Or(t.PingEvery, s.Interval), cmp.Or(t.PingDeadline, s.Timeout)
	s.Limit.Suspect, s.Limit.DownAfter = cmp.Or(t.PingMisses, s.Limit.Suspect), cmp.Or(t.DownAfter, s.Limit.DownAfter)
	return s
}

// mountedBy3 says whether this node has a server's export mounted by NFSv3
// (nfs(5): vers; the kernel calls that file system nfs, and NFSv4's nfs4).
func mountedBy3(server, export string) bool {
	data, err := os.ReadFile(mountTable)
	if err != nil {
		return false
	}
	list, err := confedit.MountInfo(data)
	return err == nil && slices.ContainsFunc(list, func(m confedit.Mounted) bool {
		_, path, ok := strings.Cut(m.Source, ":/")
		return ok && m.FSType == "nfs" && "/"+path == export && nfs.Server(m.Source) == server
	})
}

// addExport notes host:/path, or nothing if it is none.
func addExport(exports map[string][]string, source string) {
	if _, path, ok := strings.Cut(source, ":/"); ok {
		server := nfs.Server(source)
		exports[server] = append(exports[server], "/"+path)
	}
}

func (f *finder) fstab(ctx context.Context) ([]confedit.Mount, error) {
	data, err := f.read(ctx, fstabPath)
	if err != nil {
		return nil, err
	}
	list, err := confedit.Fstab(data)
	return list, step.Located(f.host, fstabPath, err) // an odd line costs that line only
}

// exports says whether this node exports anything.
func (f *finder) exports(ctx context.Context) (bool, error) {
	data, err := f.read(ctx, exportsPath)
	if err != nil {
		return false, err
	}
	list, err := confedit.Exports(data)
	return len(list) > 0, step.Located(f.host, exportsPath, err)
}

// contents returns a file's contents.
func (f *finder) contents(ctx context.Context, path string) ([]byte, error) {
	file, err := f.host.ReadFile(ctx, path)
	return file.Data, err
}

// read returns a file's contents, none if it does not exist.
func (f *finder) read(ctx context.Context, path string) ([]byte, error) {
	file, err := f.host.ReadFile(ctx, path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return file.Data, err
}
