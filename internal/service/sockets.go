package service

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"path"
	"slices"
	"strconv"
	"strings"

	"st2ha/internal/host"
)

// Socket is a line of the kernel's table of TCP sockets. Addresses are in the
// form that net.IP has them, IPv4-mapped ones as IPv4.
type Socket struct {
	IP, Port         string
	PeerIP, PeerPort string
	State            string // Established, Listening, or another in hex
}

// States of a Socket (include/net/tcp_states.h).
const (
	Established = "01"
	Listening   = "0A"
)

// Sockets reads the table as a process sees it (proc(5), /proc/net/tcp);
// process is its number, or "self".
func Sockets(ctx context.Context, h host.Host, process string) ([]Socket, error) {
	dir := path.Join("/proc", process, "net")
	if process == "self" {
		dir = "/proc/net"
	}
	var all []Socket
	for _, table := range []string{"tcp", "tcp6"} {
		f, err := h.ReadFile(ctx, path.Join(dir, table))
		if errors.Is(err, fs.ErrNotExist) {
			continue // no IPv6
		}
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(string(f.Data)) {
			fields := strings.Fields(line)
			if len(fields) < 4 {
				continue
			}
			s := Socket{State: fields[3]}
			var ok1, ok2 bool
			s.IP, s.Port, ok1 = socket(fields[1])
			s.PeerIP, s.PeerPort, ok2 = socket(fields[2])
			if ok1 && ok2 {
				all = append(all, s)
			}
		}
	}
	return all, nil
}

// socket reads ADDRESS:PORT in hex; each 32-bit word of the address is in the
// host's byte order, which is little-endian on what st2ha runs on.
func socket(s string) (ip, port string, ok bool) {
	a, p, found := strings.Cut(s, ":")
	raw, err := hex.DecodeString(a)
	n, portErr := strconv.ParseUint(p, 16, 16)
	if !found || err != nil || portErr != nil || len(raw)%4 != 0 {
		return "", "", false
	}
	for i := 0; i < len(raw); i += 4 {
		binary.BigEndian.PutUint32(raw[i:], binary.LittleEndian.Uint32(raw[i:]))
	}
	return net.IP(raw).String(), strconv.FormatUint(n, 10), true
}

// MainProcess is the number of a unit's main process; empty if it has none.
func MainProcess(ctx context.Context, h host.Host, unit string) (string, error) {
	blocks, err := show(ctx, h, "MainPID", []string{unit})
	if err != nil {
		return "", err
	}
	if pid := properties(blocks[0])["MainPID"]; pid != "0" {
		return pid, nil
	}
	return "", nil
}

// Files are the unit file and its drop-ins, in the order in which they count.
func Files(ctx context.Context, h host.Host, unit string) ([]string, error) {
	blocks, err := show(ctx, h, "FragmentPath,DropInPaths", []string{unit})
	if err != nil {
		return nil, err
	}
	p := properties(blocks[0])
	files := append(strings.Fields(p["FragmentPath"]), strings.Fields(p["DropInPaths"])...)
	return slices.DeleteFunc(files, func(name string) bool { return !path.IsAbs(name) }), nil
}

// ListensOn are the addresses on which a unit's process, or another that sees
// the same network, listens on a port.
func ListensOn(ctx context.Context, h host.Host, unit string, port int) ([]string, error) {
	pid, err := MainProcess(ctx, h, unit)
	if err != nil {
		return nil, err
	}
	if pid == "" {
		return nil, fmt.Errorf("%s has no process", unit)
	}
	all, err := Sockets(ctx, h, pid)
	if err != nil {
		return nil, err
	}
	var found []string
	for _, s := range all {
		if s.State == Listening && s.Port == strconv.Itoa(port) {
			found = append(found, s.IP)
		}
	}
	return found, nil
}
