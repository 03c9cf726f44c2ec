package stackstorm

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// As st2reactor/cmd/timersengine.py:71 and the options' defaults in
// st2common/config.py:852,865 have it.
func TestSwitchedOff(t *testing.T) {
	for conf, want := range map[string]bool{
		"[system]\n":                       false,
		"[timersengine]\nenable = False\n": true,
		"[timersengine]\nenable = no\n":    true,
		"[timersengine]\nenable = OFF\n[timer]\nlocal_timezone = UTC\n":    true,
		"[timersengine]\nenable = 0\n[timer]\nenable = False\n":            true,
		"[timersengine]\nenable = False\n[timer]\nenable = True\n":         false,
		"[timer]\nenable = False\n":                                        false,
		"[timersengine]\nenable = True\n":                                  false,
		"[timersengine]\nenabled = False\n":                                false, // no option
		"[timersengine]\nenable = none\n":                                  false, // refused: the service fails
		"[timersengine]\nenable = False\n[timer]\nenable = none\n":         false,
		"[timersengine]\nenable = False\n[timer]\nenable = $system.x\n":    false, // cannot be told
		"[timersengine]\nenable = True\nenable = False\n":                  true,  // the last one counts
		"[timersengine]\n# enable = False\n[sensorcontainer]\nenable=no\n": false,
	} {
		c := read(t, newMachine(t, "node", conf))
		require.Equal(t, want, c.SwitchedOff("st2timersengine"), conf)
		require.Equal(t, want, c.SwitchedOff("st2timersengine.service"), conf)
		for _, unit := range services() {
			require.False(t, unit != TimersUnit && c.SwitchedOff(unit), unit)
		}
	}
}

// What st2.conf switches off is neither watched nor waited for, although it is enabled.
func TestUnits(t *testing.T) {
	states := func(argv string) (string, error) {
		var blocks []string
		for _, unit := range strings.Fields(argv)[3:] {
			state := "ActiveState=active\nSubState=running"
			if unit == TimersUnit {
				state = "ActiveState=inactive\nSubState=dead"
			}
			blocks = append(blocks, "LoadState=loaded\nUnitFileState=enabled\n"+state)
		}
		return strings.Join(blocks, "\n\n") + "\n", nil
	}
	m := newMachine(t, "node", "[timersengine]\nenable = False\n")
	m.run = states
	units, err := Units(t.Context(), m)
	require.NoError(t, err)
	require.Len(t, units, len(services())-1)
	require.NotContains(t, units, TimersUnit)
	require.NoError(t, await(t.Context(), m))

	m.put(t, ConfPath, "[system]\n")
	units, err = Units(t.Context(), m)
	require.NoError(t, err)
	require.Equal(t, services(), units)
}

// Where sensors and timers are shared, what waits for its turn is not waited for; and st2.conf does not switch it off.
func TestWaiting(t *testing.T) {
	down := map[string]bool{}
	m := newMachine(t, "node", "[timersengine]\nenable = False\n")
	m.run = func(argv string) (string, error) {
		var blocks []string
		for _, unit := range strings.Fields(argv)[3:] {
			state := "ActiveState=active\nSubState=running"
			if down[unit] {
				state = "ActiveState=inactive\nSubState=dead"
			}
			blocks = append(blocks, "LoadState=loaded\nUnitFileState=enabled\n"+state)
		}
		return strings.Join(blocks, "\n\n") + "\n", nil
	}
	waiting := func(unit string) bool {
		t.Helper()
		yes, err := Waiting(t.Context(), m, unit)
		require.NoError(t, err)
		return yes
	}
	require.False(t, waiting(SensorsUnit), "nothing is shared")
	for _, unit := range []string{SensorsUnit, TimersUnit} {
		require.NoError(t, os.MkdirAll(m.root+filepath.Dir(TurnDropIn(unit)), 0o755))
		m.put(t, TurnDropIn(unit), "[Unit]\n")
	}
	require.True(t, waiting(SensorsUnit) && waiting(TimersUnit+".service"))
	require.False(t, waiting("st2api"))
	units, err := Units(t.Context(), m)
	require.NoError(t, err)
	require.Equal(t, services(), units, "all are watched, for the turn comes and goes")
	down[SensorsUnit], down[TimersUnit] = true, true
	require.NoError(t, await(t.Context(), m))

	require.NoError(t, os.MkdirAll(m.root+TurnDir, 0o755))
	m.put(t, TurnFile(TimersUnit), "[timersengine]\n")
	require.False(t, waiting(TimersUnit))
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	require.ErrorContains(t, await(ctx, m), "st2timersengine is inactive/dead", "it is this node's turn")
}
