package stackstorm

import (
	"strings"
	"testing"

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
			require.False(t, unit != timersUnit && c.SwitchedOff(unit), unit)
		}
	}
}

// What st2.conf switches off is neither watched nor waited for, although it is enabled.
func TestUnits(t *testing.T) {
	states := func(argv string) (string, error) {
		var blocks []string
		for _, unit := range strings.Fields(argv)[3:] {
			state := "ActiveState=active\nSubState=running"
			if unit == timersUnit {
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
	require.NotContains(t, units, timersUnit)
	require.NoError(t, await(t.Context(), m))

	m.put(t, ConfPath, "[system]\n")
	units, err = Units(t.Context(), m)
	require.NoError(t, err)
	require.Equal(t, services(), units)
}
