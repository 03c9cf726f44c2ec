package owner

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"st2ha/internal/stackstorm"
)

// What share_sensors installs for the agent.
const (
	AgentUnit  = "st2ha-owner.service"
	ConfigPath = "/etc/st2ha/sensors.json"
)

// DropInText binds a service to the agent: it ends with it, and starts only as long as the agent has its file there.
// The command is that of StackStorm's packages, and the file comes last, so its settings count.
func DropInText(unit string) []byte {
	return fmt.Appendf(nil, `# Installed by st2ha share_sensors; st2ha rollback removes it.
[Unit]
BindsTo=%[1]s
After=%[1]s
ConditionPathExists=%[2]s

[Service]
ExecStart=
ExecStart=%[3]s --config-file %[2]s
`, AgentUnit, stackstorm.TurnFile(unit), Command(unit))
}

// Command is how StackStorm's packages run a service (packaging/deb/systemd, packaging/rpm/systemd).
func Command(unit string) string { return "/opt/stackstorm/st2/bin/" + unit + " $DAEMON_ARGS" }

// Service is a service of StackStorm under systemd.
type Service struct {
	Name string
	// Settings are what it is told with a share.
	Settings func(share string) string
	Log      *slog.Logger

	dir     string   // of its file; tests have another one
	cgroups []string // where its control group may be
}

// NewSensors is the sensor container of a node.
func NewSensors(node string, log *slog.Logger) *Service {
	name := "st2ha-" + strings.NewReplacer(".", "-", ":", "-").Replace(node)
	return newService(stackstorm.SensorsUnit, log, func(ranges string) string {
		return fmt.Sprintf("[sensorcontainer]\nsensor_node_name = %s\npartition_provider = name:hash, hash_ranges:%s\n",
			name, ranges)
	})
}

// NewTimers is the timers engine.
func NewTimers(log *slog.Logger) *Service {
	return newService(stackstorm.TimersUnit, log, func(string) string { return "[timersengine]\nenable = True\n" })
}

func newService(name string, log *slog.Logger, settings func(string) string) *Service {
	group := "/system.slice/" + name + ".service"
	return &Service{Name: name, Settings: settings, Log: log, dir: stackstorm.TurnDir,
		// cgroup v2, and v1 as systemd has it beside v2 or alone
		cgroups: []string{"/sys/fs/cgroup" + group, "/sys/fs/cgroup/unified" + group, "/sys/fs/cgroup/systemd" + group}}
}

func (s *Service) file() string { return filepath.Join(s.dir, s.Name+".conf") }

// Allow writes the file.
func (s *Service) Allow(share string) error {
	next := s.file() + ".new"
	if err := os.WriteFile(next, []byte(s.Settings(share)), 0o644); err != nil {
		return err
	}
	return os.Rename(next, s.file())
}

// Forbid removes it.
func (s *Service) Forbid() error {
	if err := os.Remove(s.file()); err != nil && !os.IsNotExist(err) {
		return err
	}
	return nil
}

// Start has systemd start it.
func (s *Service) Start(ctx context.Context) error { return s.systemctl(ctx, 30*time.Second, "start") }

// Stop has systemd stop it: its unit gives it 60 s until it is killed.
func (s *Service) Stop(ctx context.Context) error { return s.systemctl(ctx, 90*time.Second, "stop") }

func (s *Service) systemctl(ctx context.Context, within time.Duration, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	cmd := exec.CommandContext(ctx, "systemctl", append(args, s.Name+".service")...)
	cmd.WaitDelay = time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("systemctl %s %s: %w: %s", args[0], s.Name, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// Kill first kills what runs, without systemd, which may be slow; and then, with it, what was just being started.
func (s *Service) Kill() {
	for try := 0; ; try++ {
		s.killGroup()
		ctx := context.Background()                                     // whatever ends the agent: this is done first
		_ = s.systemctl(ctx, 5*time.Second, "kill", "--signal=SIGKILL") // fails where nothing runs
		err := s.systemctl(ctx, 10*time.Second, "stop")
		if err == nil {
			return
		}
		s.Log.Error("cannot stop a unit, and try again", "unit", s.Name, "error", err)
		time.Sleep(min(time.Duration(try)*100*time.Millisecond, time.Second))
	}
}

// killGroup kills all processes of the service's control group.
func (s *Service) killGroup() {
	for _, dir := range s.cgroups {
		if os.WriteFile(dir+"/cgroup.kill", []byte("1"), 0) == nil { // Linux 5.14 and later
			return
		}
		list, err := os.ReadFile(dir + "/cgroup.procs")
		if err != nil {
			continue
		}
		for _, text := range strings.Fields(string(list)) {
			if pid, err := strconv.Atoi(text); err == nil && pid > 1 {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
	}
}
