package owner

import (
	"context"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"st2ha/internal/confedit"
	"st2ha/internal/stackstorm"
)

func TestBootClock(t *testing.T) {
	c, err := NewBootClock()
	require.NoError(t, err)
	defer c.Close()
	began := c.Now()
	text, err := os.ReadFile("/proc/uptime") // proc(5): of CLOCK_BOOTTIME
	require.NoError(t, err)
	uptime, err := strconv.ParseFloat(strings.Fields(string(text))[0], 64)
	require.NoError(t, err)
	require.InDelta(t, uptime, began.Seconds(), 1)
	require.NoError(t, c.Set(began+time.Hour))
	require.NoError(t, c.Set(began+50*time.Millisecond), "in place of the one before")
	require.NoError(t, c.Wait(t.Context()))
	require.GreaterOrEqual(t, c.Now(), began+50*time.Millisecond)
	require.NoError(t, c.Set(1), "it is over: at once")
	require.NoError(t, c.Wait(t.Context()))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, c.Wait(ctx), context.DeadlineExceeded)
}

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// What a service is told is what StackStorm reads; it is there only while the service may run.
func TestServiceFile(t *testing.T) {
	for _, tc := range []struct {
		s                          *Service
		share, section, key, value string
	}{
		{NewSensors("2001:db8::1", quiet()), "0..1|5..9", "sensorcontainer", "partition_provider", "name:hash, hash_ranges:0..1|5..9"},
		{NewSensors("192.0.2.1", quiet()), "0..1", "sensorcontainer", "sensor_node_name", "st2ha-192-0-2-1"},
		{NewTimers(quiet()), "", "timersengine", "enable", "True"},
	} {
		tc.s.dir = t.TempDir()
		require.NoError(t, tc.s.Forbid(), "nothing is there yet")
		require.NoError(t, tc.s.Allow("another"))
		require.NoError(t, tc.s.Allow(tc.share))
		data, err := os.ReadFile(tc.s.file())
		require.NoError(t, err)
		conf, err := confedit.ParseINI(data, confedit.OSLO)
		require.NoError(t, err)
		got, _ := conf.Get(tc.section, tc.key)
		require.Equal(t, tc.value, got)
		info, err := os.Stat(tc.s.file())
		require.NoError(t, err)
		require.EqualValues(t, 0o644, info.Mode().Perm(), "the user st2 reads it")
		require.NoError(t, tc.s.Forbid())
		left, err := os.ReadDir(tc.s.dir)
		require.NoError(t, err)
		require.Empty(t, left)
	}
}

// Without cgroup.kill each process is killed; and systemd is asked until it has stopped the unit.
func TestServiceKill(t *testing.T) {
	dir := t.TempDir()
	sleeper := exec.Command("sleep", "1000")
	require.NoError(t, sleeper.Start())
	require.NoError(t, os.WriteFile(dir+"/cgroup.procs", []byte(strconv.Itoa(sleeper.Process.Pid)+"\n"), 0o644))
	require.NoError(t, os.Mkdir(dir+"/cgroup.kill", 0o755)) // cannot be written
	bin := t.TempDir()
	require.NoError(t, os.WriteFile(bin+"/systemctl", []byte(`#!/bin/sh
echo "$@" >> `+dir+`/asked
[ $(grep -c ^stop `+dir+`/asked) != 1 ]
`), 0o755))
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	s := NewSensors("a", quiet())
	s.cgroups = []string{dir + "/none", dir}
	s.Kill()
	require.EqualError(t, sleeper.Wait(), "signal: killed")
	asked, err := os.ReadFile(dir + "/asked")
	require.NoError(t, err)
	require.Equal(t, strings.Repeat("kill --signal=SIGKILL st2sensorcontainer.service\nstop st2sensorcontainer.service\n", 2),
		string(asked))
}

// systemd takes the drop-ins, and finds no fault with them.
func TestDropIn(t *testing.T) {
	for _, unit := range []string{stackstorm.SensorsUnit, stackstorm.TimersUnit} {
		dir := t.TempDir()
		program := filepath.Join(dir, unit)
		require.NoError(t, os.WriteFile(program, nil, 0o755))
		here := func(text string) []byte {
			return []byte(strings.ReplaceAll(text, "/opt/stackstorm/st2/bin/"+unit, program))
		}
		file := filepath.Join(dir, unit+".service")
		require.NoError(t, os.WriteFile(file, here("[Service]\nEnvironment=\"DAEMON_ARGS=--config-file /etc/st2/st2.conf\"\n"+
			"ExecStart="+Command(unit)+"\n"), 0o644))
		require.NoError(t, os.WriteFile(filepath.Join(dir, AgentUnit), []byte("[Service]\nExecStart="+program+"\n"), 0o644))
		require.NoError(t, os.Mkdir(file+".d", 0o755))
		require.NoError(t, os.WriteFile(file+".d/st2ha.conf", here(string(DropInText(unit))), 0o644))
		out, err := exec.Command("systemd-analyze", "verify", "--man=no", file).CombinedOutput()
		require.NoError(t, err, string(out))
		require.NotContains(t, string(out), unit, "it warns of something")
	}
}
