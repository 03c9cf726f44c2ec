package backend

import (
	"context"
	"errors"
	"io/fs"
	"net"

	"st2ha/internal/confedit"
	"st2ha/internal/host"
	"st2ha/internal/probe"
	"st2ha/internal/stackstorm"
	"st2ha/internal/step"
)

// FstabPath is where the mounts of a node are.
const FstabPath = "/etc/fstab"

// Node is what endpoints are found from, and those that were found.
type Node struct {
	Host   host.Host
	Config Config           // counts more than what the node's own files say
	Conf   *stackstorm.Conf // nil if there is none that can be read

	Endpoints []probe.Endpoint
	Problems  []error // what cannot be found out, beside all else

	fstab []confedit.Mount
	read  bool // fstab
}

// Problem notes what cannot be found out, unless err is nil.
func (n *Node) Problem(err error) {
	if err != nil {
		n.Problems = append(n.Problems, err)
	}
}

// Add adds an endpoint at host:port.
func (n *Node) Add(ctx context.Context, backend, addr string, watch probe.Func) {
	n.Endpoints = append(n.Endpoints, probe.Endpoint{Backend: backend, Name: addr, Host: n.Machine(ctx, addr),
		Watch: watch})
}

// Machine is the host of host:port; empty for this node.
func (n *Node) Machine(ctx context.Context, addr string) string {
	name, _, err := net.SplitHostPort(addr)
	if err != nil {
		name = addr
	}
	if local, err := host.IsLocal(ctx, name); err == nil && local {
		return ""
	}
	return name
}

// Contents returns a file's contents.
func (n *Node) Contents(ctx context.Context, path string) ([]byte, error) {
	file, err := n.Host.ReadFile(ctx, path)
	return file.Data, err
}

// ContentsOrNone returns a file's contents, none if it does not exist.
func (n *Node) ContentsOrNone(ctx context.Context, path string) ([]byte, error) {
	data, err := n.Contents(ctx, path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return data, err
}

// Mounts are the NFS mounts of /etc/fstab.
func (n *Node) Mounts(ctx context.Context) []confedit.Mount {
	if n.read {
		return n.fstab
	}
	n.read = true
	data, err := n.ContentsOrNone(ctx, FstabPath)
	if err != nil {
		n.Problem(err)
		return nil
	}
	list, err := confedit.Fstab(data)
	n.Problem(step.Located(n.Host, FstabPath, err)) // an odd line costs that line only
	for _, m := range list {
		if m.Type == "nfs" || m.Type == "nfs4" {
			n.fstab = append(n.fstab, m)
		}
	}
	return n.fstab
}
