// Package testenv is how a test says what it takes of the machine that it runs
// on. Where that is not there the test is skipped, and says why; with
// TEST_ALL=1, as make sets it, it fails. It also has what tests of several
// packages share.
package testenv

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// NeedsRoot is for what only root may do, such as to mount, and to give files away.
func NeedsRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		missing(t, "takes root")
	}
}

// NeedsPrograms is for programs that test/setup.sh installs, by name or path.
func NeedsPrograms(t testing.TB, programs ...string) {
	t.Helper()
	var not []string
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			not = append(not, p)
		}
	}
	if len(not) > 0 {
		missing(t, "takes "+strings.Join(not, ", ")+": make setup installs it")
	}
}

func missing(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("TEST_ALL") != "" {
		t.Fatal(why)
	}
	t.Skip(why)
}
