package main

import (
	"encoding/json"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"st2ha": main})
}

// TestScripts runs the binary on what people may give it. Everything here ends
// before a host is changed: see refused.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			for _, name := range []string{"ST2HA_RABBITMQ_PASSWORD", "LANG", "LC_ALL"} {
				e.Setenv(name, "")
			}
			return nil
		},
		Condition: func(cond string) (bool, error) { return cond == "root" && os.Geteuid() == 0, nil },
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"refused": refused,
			"newline": func(ts *testscript.TestScript, _ bool, args []string) { ts.Setenv(args[0], "one\ntwo") },
		},
	})
}

// refused EXIT CODE ARGUMENTS…: the command ends with that exit code, prints
// one JSON object with that error code and one line on stderr, and says that
// nothing was changed.
func refused(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: refused EXIT CODE ARGUMENTS…")
	}
	err := ts.Exec("st2ha", args[2:]...)
	if err == nil {
		ts.Fatalf("it was not refused")
	}
	if want := "exit status " + args[0]; err.Error() != want {
		ts.Fatalf("it ended with %v, not with %s:\n%s", err, want, ts.ReadFile("stderr"))
	}
	stdout, stderr := ts.ReadFile("stdout"), ts.ReadFile("stderr")
	if strings.Count(stderr, "\n") != 1 || !strings.HasPrefix(stderr, "st2ha: ") {
		ts.Fatalf("stderr is not one line:\n%s", stderr)
	}
	if strings.Count(stdout, "\n") != 1 {
		ts.Fatalf("stdout is not one line:\n%s", stdout)
	}
	var result struct {
		Changed  bool
		Changes  []any
		Findings []any
		Error    *struct{ Code, Message, Hint string }
	}
	if err := json.Unmarshal([]byte(stdout), &result); err != nil {
		ts.Fatalf("stdout is no JSON object: %v", err)
	}
	switch {
	case result.Error == nil, result.Changes == nil, result.Findings == nil:
		ts.Fatalf("the object has no error, changes or findings:\n%s", stdout)
	case result.Error.Code != args[1]:
		ts.Fatalf("the code is %s, not %s", result.Error.Code, args[1])
	case result.Changed || len(result.Changes) > 0:
		ts.Fatalf("something was changed:\n%s", stdout)
	case !strings.Contains(stderr, strings.ReplaceAll(result.Error.Message, "\n", " ")):
		ts.Fatalf("stderr says something else than %s", strconv.Quote(result.Error.Message))
	}
}
