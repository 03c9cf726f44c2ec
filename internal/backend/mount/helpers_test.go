package mount_test

import (
	"context"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"st2ha/internal/backend/mount"
	"st2ha/internal/memexec"
	"st2ha/internal/probe"
	"st2ha/internal/probe/probetest"
)

// TestMain lets the test binary be the child process of the mount probe, and a
// small watcher of one mount.
func TestMain(m *testing.M) {
	switch {
	case len(os.Args) == 3 && os.Args[1] == "statfs":
		unix.Exit(mount.Statfs(os.Args[2])) // os.Exit takes a second with the race detector
	case len(os.Args) == 3 && os.Args[1] == "watch":
		watchMount(os.Args[2])
	default:
		os.Exit(m.Run())
	}
}

// watchMount prints which file the program runs from, and then what changes.
func watchMount(point string) {
	if err := memexec.Run(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	program, _ := os.Readlink("/proc/self/exe")
	fmt.Println(program)
	last := probe.Unknown
	mount.Watch(point, settings())(context.Background(), func(o probe.Observation) {
		if o.Verdict != last {
			last = o.Verdict
			fmt.Println(o.Reason)
		}
	})
}

func good(tb testing.TB, w *probetest.Record, from int, probes ...string) {
	tb.Helper()
	for _, name := range probes {
		w.Next(tb, from, name, probe.Good, "")
	}
}
