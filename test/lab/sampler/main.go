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
	s := sampler{all: *all, seen: map[string]bool{}, age: map[string]int{}, found: map[string]bool{}}
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
		case <-time.After(time.Since(began)): // half of the node's time is for others
		}
	}
}

type sampler struct {
	all     bool
	secrets [][]byte
	seen    map[string]bool // a process and its arguments
	age     map[string]int  // rounds in which a process was there
	found   map[string]bool
}

// look goes through /proc once. A process that is gone meanwhile reads as empty.
func (s *sampler) look() {
	dir, err := os.Open("/proc")
	if err != nil {
		return
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	for _, pid := range names {
		if _, err := strconv.Atoi(pid); err != nil {
			continue
		}
		// Who executes another program does so early in life.
		if s.age[pid]++; s.age[pid] > 50 && s.age[pid]%20 != 0 {
			continue
		}
		argv, _ := os.ReadFile("/proc/" + pid + "/cmdline")
		if len(argv) == 0 || s.seen[pid+string(argv)] {
			continue
		}
		s.seen[pid+string(argv)] = true
		s.match("argv", argv, argv)
		// Read after that is known: until it executes its program, a process has the environment of who started it.
		if s.all || startedByUs(pid) {
			env, _ := os.ReadFile("/proc/" + pid + "/environ")
			s.match("environ", env, argv)
		}
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
