// Command sampler looks for secrets in the arguments of all processes of a machine, and in the environment of those
// that st2ha starts (with -all: of all), again and again through /proc.
//
// Standard input has one secret a line, up to an empty line; when it ends, so does the program. Each find is a line:
//
//	argv|environ NUMBER-OF-THE-SECRET PROGRAM
//
// and the last line says how much was looked at.
package main

import (
	"bufio"
	"bytes"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

func main() {
	all := flag.Bool("all", false, "look into the environment of all processes")
	flag.Parse()
	in := bufio.NewReader(os.Stdin)
	s := sampler{all: *all, seen: map[string]bool{}, young: map[int]time.Time{}, found: map[string]bool{}}
	for {
		line, err := in.ReadString('\n')
		if line = strings.TrimSuffix(line, "\n"); line == "" || err != nil {
			break
		}
		s.secrets = append(s.secrets, []byte(line))
	}
	fmt.Println("ready")
	ended := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, in)
		close(ended)
	}()
	for rounds := 1; ; rounds++ {
		began := time.Now()
		s.look()
		select {
		case <-ended:
			fmt.Printf("%d rounds, %d command lines\n", rounds, len(s.seen))
			return
		case <-time.After(min(6*time.Since(began), pause)): // most of the node's time is for others
		}
	}
}

// pause is the longest time between two looks.
const pause = 30 * time.Millisecond

// youth is how long a new process is looked at again and again. Who executes
// another program does so early in life.
const youth = 600 * time.Millisecond

type sampler struct {
	all     bool
	secrets [][]byte
	seen    map[string]bool   // a process and its arguments
	last    int               // the newest process known
	young   map[int]time.Time // processes, and until when they are looked at
	listed  time.Time         // when all were
	found   map[string]bool
}

// look looks at the processes that are new, which the kernel's newest process
// number (loadavg of proc(5)) tells without a list of all; once a second at all.
// One that is gone meanwhile reads as empty.
func (s *sampler) look() {
	now := time.Now()
	load, _ := os.ReadFile("/proc/loadavg")
	last, err := strconv.Atoi(strings.TrimSpace(string(load[bytes.LastIndexByte(load, ' ')+1:])))
	if err != nil {
		return
	}
	if last < s.last { // the numbers begin anew
		s.last, s.listed = 0, time.Time{}
	}
	for pid := max(s.last+1, last-1000); s.last > 0 && pid <= last; pid++ {
		s.young[pid] = now.Add(youth)
	}
	if now.Sub(s.listed) > time.Second {
		s.listed = now
		until := now
		if s.last == 0 {
			until = now.Add(youth)
		}
		names, _ := filepath.Glob("/proc/[0-9]*")
		for _, name := range names {
			if pid, _ := strconv.Atoi(filepath.Base(name)); s.young[pid].IsZero() {
				s.young[pid] = until
			}
		}
	}
	s.last = last
	for pid, until := range s.young {
		if now.After(until) {
			delete(s.young, pid)
		}
		s.process(strconv.Itoa(pid))
	}
}

func (s *sampler) process(pid string) {
	argv, err := os.ReadFile("/proc/" + pid + "/cmdline")
	if err != nil || len(argv) == 0 || s.seen[pid+string(argv)] {
		return
	}
	s.seen[pid+string(argv)] = true
	s.match("argv", argv, argv)
	// Read after that is known: until it executes its program, a process has the environment of who started it.
	if s.all || startedByUs(pid) {
		env, _ := os.ReadFile("/proc/" + pid + "/environ")
		s.match("environ", env, argv)
	}
}

func (s *sampler) match(where string, text, argv []byte) {
	for i, secret := range s.secrets {
		if !bytes.Contains(text, secret) {
			continue
		}
		program, _, _ := bytes.Cut(argv, []byte{0})
		find := fmt.Sprintf("%s %d %s", where, i, program)
		if !s.found[find] {
			s.found[find] = true
			fmt.Println(find)
		}
	}
}

// startedByUs says whether a process is not st2ha, but below one.
func startedByUs(pid string) bool {
	for above := false; pid != "0" && pid != ""; above = true {
		exe, _ := os.Readlink("/proc/" + pid + "/exe")
		if strings.HasPrefix(filepath.Base(exe), "st2ha") {
			return above
		}
		status, _ := os.ReadFile("/proc/" + pid + "/status")
		_, rest, _ := strings.Cut(string(status), "\nPPid:\t")
		pid, _, _ = strings.Cut(rest, "\n")
	}
	return false
}
