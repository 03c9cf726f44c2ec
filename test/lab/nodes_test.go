// Package lab tests the main job on real nodes: User-Mode Linux machines with
// their own kernel, systemd, sshd, RabbitMQ, Redis and NFS. This file has what
// the tests share; each of them begins with nodes as they were installed.
package lab

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"st2ha/internal/testenv"
)

var update = flag.Bool("update", false, "write the golden files anew")

const (
	primary    = "192.168.0.100"
	secondary  = "192.168.0.101"
	secondary2 = "192.168.0.102"
	// password has every character that a format on its way could trip over.
	password = `p'a"s@s/w:o$r%d`
	// program is the launcher, where the pack is installed.
	program = "/opt/stackstorm/packs/st2ha/actions/st2ha"
	// half is what a run that was killed in the middle of a write leaves beside a file.
	half = ".st2ha-0123456789abcdef"
)

// need is what only a node with a kernel of its own has.
type need string

const (
	kernelNFS  need = "NFS in the node's kernel"
	ownClock   need = "a clock of the node's own"
	ownDisk    need = "a disk of the node's own, that can be full"
	powerCut   need = "a power cut that loses what was not synced"
	standstill need = "a kernel that can stand still"
)

// Of tests, only those are run whose nodes are of this kind.
var only = flag.String("only", "", "uml or fast")

// given is a lab that is up already, in LAB: all tests use it as it is, and it stays up.
var given = func() bool {
	_, err := os.Stat(filepath.Join(os.Getenv("LAB"), "ssh_config"))
	return os.Getenv("LAB") != "" && err == nil
}()

// labs are those that this process has brought up, by the kind of their nodes.
var labs = map[string]string{}

// needs is how each test begins. It says what its nodes must have that only User-Mode Linux gives; where that is
// nothing, they are fast ones. The lab of that kind comes up with the first test that asks for it. KIND=uml has all
// tests on User-Mode Linux.
func needs(t *testing.T, all ...need) {
	t.Helper()
	testenv.NeedsRoot(t)
	kind := "fast"
	if len(all) > 0 || os.Getenv("KIND") == "uml" {
		kind = "uml"
	}
	if *only != "" && *only != kind {
		t.Skipf("-only=%s", *only)
	}
	if given {
		if data, err := os.ReadFile(filepath.Join(os.Getenv("LAB"), "kind")); kind == "uml" &&
			(err != nil || string(data) != "uml\n") {
			require.FailNow(t, "the nodes in LAB are not of User-Mode Linux", "it needs %v", all)
		}
	} else if labs[kind] == "" {
		labs[kind] = filepath.Join(os.TempDir(), fmt.Sprintf("st2ha-lab-%s-%d", kind, os.Getpid()))
		err := up(kind, labs[kind])
		if err != nil && kind == "fast" {
			fmt.Printf("no fast nodes come up on this machine, so what is for them runs on User-Mode Linux: %v\n", err)
			err = up("uml", labs[kind])
		}
		require.NoError(t, err)
	}
	if !given {
		require.NoError(t, os.Setenv("LAB", labs[kind]))
	}
}

// up brings up a lab of three nodes, with the pack on the primary, and says which kernel they run.
func up(kind, dir string) error {
	env := append(os.Environ(), "LAB="+dir, "KIND="+kind, "NODES=primary secondary secondary2")
	for _, script := range []string{"up", "kernel"} {
		c := command(nil, "./lab.sh", script)
		c.Env = env
		out, err := c.CombinedOutput()
		if err != nil {
			return fmt.Errorf("lab.sh %s: %w\n%s", script, err, out)
		}
		fmt.Printf("%s", out) // which kernel, and why
	}
	c := command(nil, "./deploy.sh")
	c.Env = env
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("deploy.sh: %w\n%s", err, out)
	}
	return nil
}

// TestMain ends the labs that the tests have brought up.
func TestMain(m *testing.M) {
	flag.Parse()
	if given {
		if out, err := command(nil, "./deploy.sh").CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "deploy.sh: %v\n%s", err, out)
			os.Exit(1)
		}
	}
	code := m.Run()
	for _, dir := range labs {
		c := command(nil, "./lab.sh", "down")
		c.Env = append(os.Environ(), "LAB="+dir)
		if out, err := c.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "lab.sh down: %v\n%s", err, out)
			code = 1
		}
	}
	os.Exit(code)
}

func command(stdin []byte, argv ...string) *exec.Cmd {
	c := exec.Command(argv[0], argv[1:]...)
	c.Stdin = bytes.NewReader(stdin)
	return c
}

// lab runs one of the lab's scripts.
func lab(t *testing.T, argv ...string) {
	t.Helper()
	out, err := command(nil, argv...).CombinedOutput()
	require.NoError(t, err, "%s: %s", strings.Join(argv, " "), out)
}

// inUse marks a node that is not as it was installed.
const inUse = "/var/lib/lab-in-use"

// installed gives nodes as they were installed, and returns what proves that
// they are so again. A test that ends without this proof leaves its nodes to
// be installed anew by the next.
func installed(t *testing.T, nodes ...string) (untouched func(*testing.T)) {
	t.Helper()
	var used []string
	for _, n := range nodes {
		if on(t, n, "ls "+inUse+" 2>/dev/null || true") != "" {
			used = append(used, n)
		}
	}
	if len(used) > 0 {
		lab(t, append([]string{"./lab.sh", "reset"}, used...)...)
		if slices.Contains(used, "primary") {
			lab(t, "./deploy.sh")
		}
	}
	before := map[string][]string{}
	for _, n := range nodes {
		before[n] = tree(t, n)
		on(t, n, "rm -rf /var/lib/st2ha; touch "+inUse) // an earlier test's journals, undone
	}
	proved := false
	t.Cleanup(func() {
		for _, n := range nodes {
			if proved && !t.Failed() {
				on(t, n, "rm "+inUse)
			}
		}
	})
	return func(t *testing.T) {
		t.Helper()
		proved = false
		for _, n := range nodes {
			require.Empty(t, difference(before[n], tree(t, n)), n)
		}
		proved = true
	}
}

// on runs a command on a node as root and returns what it printed.
func on(t *testing.T, node, line string) string {
	t.Helper()
	var stderr bytes.Buffer
	c := command(nil, "./lab.sh", "ssh", node, line)
	c.Stderr = &stderr
	out, err := c.Output()
	require.NoError(t, err, "%s on %s: %s%s", line, node, out, &stderr)
	return string(out)
}

// provide builds a program of this repository and puts it on nodes.
func provide(t *testing.T, path, source string, nodes []string, flags ...string) {
	t.Helper()
	binary := filepath.Join(t.TempDir(), filepath.Base(path))
	build := exec.Command("go", append(append([]string{"build", "-trimpath", "-o", binary}, flags...), source)...)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)
	data, err := os.ReadFile(binary)
	require.NoError(t, err)
	for _, n := range nodes {
		// The old one may be running.
		out, err := command(data, "./lab.sh", "ssh", n,
			fmt.Sprintf("rm -f %[1]s; cat > %[1]s && chmod 755 %[1]s", path)).CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
}

// keep puts files of a node back as they were when the test ends.
func keep(t *testing.T, node string, files ...string) {
	t.Helper()
	for _, file := range files {
		kept := "/root/kept-" + strings.ReplaceAll(file, "/", "-")
		on(t, node, fmt.Sprintf("if [ -e %[1]s ]; then cp -a %[1]s %[2]s; fi", file, kept))
		t.Cleanup(func() {
			on(t, node, fmt.Sprintf("rm -f %[1]s; if [ -e %[2]s ]; then mv %[2]s %[1]s; fi", file, kept))
		})
	}
}

// tree lists the files of a node that a run may change; st2ha's own journal is
// not among them.
func tree(t *testing.T, node string) []string {
	t.Helper()
	out, err := command(nil, "./lab.sh", "tree", node, "/etc", "/opt/stackstorm", "/home", "/root", "/srv").Output()
	require.NoError(t, err)
	return strings.Split(strings.TrimSpace(string(out)), "\n")
}

// difference shows two trees as a diff without context.
func difference(before, after []string) string {
	var out strings.Builder
	for _, line := range before {
		if !slices.Contains(after, line) {
			out.WriteString("- " + line + "\n")
		}
	}
	for _, line := range after {
		if !slices.Contains(before, line) {
			out.WriteString("+ " + line + "\n")
		}
	}
	return out.String()
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		require.NoError(t, os.MkdirAll("testdata", 0o755))
		require.NoError(t, os.WriteFile(path, []byte(got), 0o644))
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, string(want), got, "run with -update if the change is meant")
}

// finding is one of an action's findings.
type finding struct{ Severity, Host, Check, Message, Fix string }

// outcome is what the workflow engine says of a run.
type outcome struct {
	Status string
	Output struct {
		Changed bool
		Run     string
		Failure struct{ Host, Step, Code, Message, Hint string }
		Stdout  result              // of an action that is no workflow
		Nodes   map[string][]string // what came of each step, and each finding, in a line
		Steps   []struct {
			Step, Host string
			Changed    bool
			Changes    []change
			Findings   []finding
		}
	}
	Tasks []struct {
		Name   string
		Result json.RawMessage
	}
	raw string
}

// change is one of a join's, with its diff in lines.
type change struct {
	Kind, Target string
	Diff         []string
}

// changes are those of a node, in the order in which they were made.
func (o outcome) changes(host string) (all []change) {
	for _, s := range o.Output.Steps {
		if s.Host == host {
			all = append(all, s.Changes...)
		}
	}
	return all
}

// findings are those of a node.
func (o outcome) findings(host string) (all []finding) {
	for _, s := range o.Output.Steps {
		if s.Host == host {
			all = append(all, s.Findings...)
		}
	}
	return all
}

// changed says whether anything was changed on a node.
func (o outcome) changed(host string) bool {
	for _, s := range o.Output.Steps {
		if s.Host == host && s.Changed {
			return true
		}
	}
	return false
}

// said is what came of a step on a node, in the line that people read.
func (o outcome) said(t *testing.T, host, step string) string {
	t.Helper()
	last := ""
	for _, line := range o.Output.Nodes[host] {
		if text, ok := strings.CutPrefix(line, step+": "); ok {
			last = text
		}
	}
	require.NotEmpty(t, last, "%s: no line of %s: %v", host, step, o.Output.Nodes[host])
	return last
}

// stackstorm is where the pack's actions run, and with which settings beside
// the addresses and the password.
type stackstorm struct {
	node     string
	settings string
	pack     string // on the node, if it is not where it is installed
}

// action runs an action of the pack as StackStorm on the primary would.
func action(t *testing.T, name string, params map[string]any) outcome {
	t.Helper()
	return stackstorm{node: "primary"}.action(t, name, params)
}

func (s stackstorm) action(t *testing.T, name string, params map[string]any) outcome {
	t.Helper()
	o, err := s.try(t, name, params)
	require.NoError(t, err)
	return o
}

// try is action for other goroutines than the test's.
func (s stackstorm) try(t *testing.T, name string, params map[string]any) (outcome, error) {
	t.Helper()
	secret, err := json.Marshal(password)
	if err != nil {
		return outcome{}, err
	}
	config, err := os.CreateTemp(t.TempDir(), "st2ha-*.yaml")
	if err != nil {
		return outcome{}, err
	}
	defer config.Close()
	if _, err := fmt.Fprintf(config, "primary: %s\nsecondaries: [%s]\nrabbitmq_password: %s\n%s", primary, secondary,
		secret, s.settings); err != nil {
		return outcome{}, err
	}
	python, err := command(nil, "../workflow/setup.sh").Output()
	if err != nil {
		return outcome{}, err
	}
	if params == nil {
		params = map[string]any{}
	}
	encoded, err := json.Marshal(params)
	if err != nil {
		return outcome{}, err
	}
	argv := []string{strings.TrimSpace(string(python)), "../workflow/run.py", "--pack", "../..", "--config",
		config.Name(), "--params", "-",
		"--runner", "--exec", "ssh -F " + os.Getenv("LAB") + "/ssh_config " + s.node, name}
	if s.pack != "" {
		argv = append(argv, "--node-pack", s.pack)
	}
	c := command(encoded, argv...)
	var stderr bytes.Buffer
	c.Stderr = &stderr
	out, _ := c.Output() // a failed workflow is judged by its output
	t.Log(stderr.String())
	var o outcome
	if err := json.Unmarshal(out, &o); err != nil {
		return outcome{}, fmt.Errorf("%w: %s\n%s", err, out, &stderr)
	}
	o.raw = string(out) + stderr.String()
	return o, nil
}

// result is what the program prints, with its exit code.
type result struct {
	Step, Host, Run string
	Changed         bool
	Changes         []struct{ Kind, Target, Diff string }
	Findings        []finding
	Error           struct{ Code, Message, Hint string }
	exit            int
	raw             string
}

// st2ha runs the program on a node, without StackStorm. user is root's node,
// or another user's: stanley@primary.
func st2ha(t *testing.T, user string, args ...string) result {
	t.Helper()
	return st2haWith(t, user, password, args...)
}

func st2haWith(t *testing.T, user, secret string, args ...string) result {
	t.Helper()
	r := printed(t, remote(secret, user, args...))
	require.NotContains(t, r.raw, secret)
	return r
}

// printed runs the program, and reads what it printed.
func printed(t *testing.T, c *exec.Cmd) result {
	t.Helper()
	var stderr bytes.Buffer
	c.Stderr = &stderr
	out, err := c.Output()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		require.NoError(t, err)
	}
	var r result
	require.NoError(t, json.Unmarshal(out, &r), "%s %s", out, &stderr)
	r.exit, r.raw = c.ProcessState.ExitCode(), string(out)+stderr.String()
	return r
}

// remote is the program on a node, with the secret on its way by standard input.
func remote(secret, user string, args ...string) *exec.Cmd {
	line := "IFS= read -rd '' ST2HA_RABBITMQ_PASSWORD; export ST2HA_RABBITMQ_PASSWORD; exec " + program
	for _, a := range args {
		line += " '" + strings.ReplaceAll(a, "'", `'\''`) + "'"
	}
	return command([]byte(secret), "./lab.sh", "ssh", user, line)
}

// handedOver waits until a node has undone what a rollback by an action handed over to it.
func handedOver(t *testing.T, host string) {
	t.Helper()
	node := map[string]string{primary: "primary", secondary: "secondary", secondary2: "secondary2"}[host]
	const waits = "systemctl is-active st2ha-rollback.timer st2ha-rollback.service | grep -Ex 'active|activating' || " +
		"true"
	for end := time.Now().Add(4 * time.Minute); on(t, node, waits) != ""; time.Sleep(time.Second) {
		require.True(t, time.Now().Before(end), "the rollback that was handed over has not ended")
	}
}

// settle waits for the restart of a node's services that follows the end of
// what was run there.
func settle(t *testing.T, node string) {
	t.Helper()
	for end := time.Now().Add(3 * time.Minute); ; time.Sleep(time.Second) {
		if on(t, node, "ls -A /var/lib/st2ha/owed") == "" {
			return
		}
		require.True(t, time.Now().Before(end), "the deferred restart did not take place")
	}
}
