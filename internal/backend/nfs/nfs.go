// Package nfs is the backend NFS: the server of what StackStorm's nodes share.
package nfs

import (
	"cmp"
	"context"
	"os"
	"slices"
	"strconv"
	"strings"

	"st2ha/internal/backend"
	"st2ha/internal/confedit"
	"st2ha/internal/mountinfo"
	client "st2ha/internal/nfs"
	"st2ha/internal/step"
)

// Name is the backend's.
const Name = "nfs"

// ExportsPath is where a node's exports are.
const ExportsPath = "/etc/exports"

// New describes an NFS server.
func New() backend.Backend {
	return backend.Backend{
		Name:      Name,
		Units:     client.Units(),
		Answers:   client.Answers,
		Port:      strconv.Itoa(client.Port),
		Endpoints: endpoints,
	}
}

// endpoints are the servers of the node's mounts, and its own.
func endpoints(ctx context.Context, n *backend.Node) {
	exports := map[string][]string{} // by server
	add := func(source string) {
		if _, path, ok := strings.Cut(source, ":/"); ok {
			server := client.Server(source)
			exports[server] = append(exports[server], "/"+path)
		}
	}
	given := n.Config.NFS
	for _, source := range given {
		add(source)
	}
	for _, m := range n.Mounts(ctx) {
		if len(given) == 0 && !m.ByHand() {
			add(m.Source)
		}
	}
	if serves(ctx, n) && len(given) == 0 {
		// No export is asked for: it is exported to others, and not to this node.
		exports[client.Server("localhost:/")] = nil
	}
	for server, paths := range exports {
		s := settings(n.Config)
		s.Version3 = func(export string) bool { return mountedBy3(server, export) }
		n.Add(ctx, Name, server, Watch(server, paths, s))
	}
}

// serves says whether this node exports anything.
func serves(ctx context.Context, n *backend.Node) bool {
	data, err := n.ContentsOrNone(ctx, ExportsPath)
	if err != nil {
		n.Problem(err)
		return false
	}
	list, err := confedit.Exports(data)
	n.Problem(step.Located(n.Host, ExportsPath, err)) // an odd line costs that line only
	return len(list) > 0
}

// settings are the defaults with what is configured.
func settings(c backend.Config) Settings {
	s := DefaultSettings()
	t := c.Timing()
	s.Interval, s.Timeout = cmp.Or(t.PingEvery, s.Interval), cmp.Or(t.PingDeadline, s.Timeout)
	s.Limit.Suspect, s.Limit.DownAfter = cmp.Or(t.PingMisses, s.Limit.Suspect), cmp.Or(t.DownAfter, s.Limit.DownAfter)
	return s
}

// mountedBy3 says whether this node has a server's export mounted by NFSv3
// (nfs(5): vers; the kernel calls that file system nfs, and NFSv4's nfs4).
func mountedBy3(server, export string) bool {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false
	}
	list, err := mountinfo.Parse(data)
	return err == nil && slices.ContainsFunc(list, func(m mountinfo.Mount) bool {
		_, path, ok := strings.Cut(m.Source, ":/")
		return ok && m.FSType == "nfs" && "/"+path == export && client.Server(m.Source) == server
	})
}
