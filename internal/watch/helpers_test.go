package watch_test

import (
	"context"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"st2ha/internal/probe"
	"st2ha/internal/watch"
)

// TestMain lets the test binary be the child process of the mount probe, and a
// small watcher of one mount.
func TestMain(m *testing.M) {
	switch {
	case len(os.Args) == 3 && os.Args[1] == "statfs":
		unix.Exit(watch.Statfs(os.Args[2])) // os.Exit takes a second with the race detector
	case len(os.Args) == 3 && os.Args[1] == "watch":
		watchMount(os.Args[2])
	default:
		os.Exit(watch.RunTests(m))
	}
}

// watchMount prints which file the program runs from, and then what changes.
func watchMount(point string) {
	if err := watch.RunFromMemory(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	program, _ := os.Readlink("/proc/self/exe")
	fmt.Println(program)
	last := probe.Unknown
	watch.NFSMount(point, settings())(context.Background(), func(o probe.Observation) {
		if o.Verdict != last {
			last = o.Verdict
			fmt.Println(o.Reason)
		}
	})
}
