package heal_test

import (
	"context"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"st2ha/internal/fault"
	"st2ha/internal/heal"
	"st2ha/internal/host"
)

// systemd is a host whose systemctl is canned: it knows some units.
type systemd struct {
	*host.Local
	units  string
	failed bool // every restart fails
	ran    []string
}

func (s *systemd) Run(_ context.Context, _ []byte, argv ...string) ([]byte, error) {
	s.ran = append(s.ran, strings.Join(argv[1:], " "))
	switch argv[1] {
	case "show":
		var blocks []string
		for _, unit := range argv[3:] {
			state := "not-found"
			if strings.Contains(s.units, unit) {
				state = "loaded"
			}
			blocks = append(blocks, "LoadState="+state+"\n")
		}
		return []byte(strings.Join(blocks, "\n")), nil
	case "reset-failed":
		return nil, &host.ExitError{Program: "systemctl reset-failed", Code: 1, Stderr: "Unit not loaded."}
	}
	if s.failed {
		return nil, &host.ExitError{Program: "systemctl restart", Code: 1}
	}
	return nil, nil
}

func TestUnit(t *testing.T) {
	h, _ := node(t)
	for _, tc := range []struct{ backend, units, want, code string }{
		{"mongodb", "mongod.service mongodb.service", "mongod.service", ""},
		{"mongodb", "mongodb.service", "mongodb.service", ""},
		{"redis", "redis.service", "redis.service", ""},
		{"nfs", "nfs-server.service", "nfs-server.service", ""},
		{"rabbitmq", "", "", "no_unit"},
		{"mount", "", "", "usage"},
		{"../etc", "", "", "usage"},
	} {
		unit, err := heal.Unit(t.Context(), &systemd{Local: h, units: tc.units}, tc.backend)
		require.Equal(t, tc.want, unit, tc.backend)
		if tc.code == "" {
			require.NoError(t, err)
		} else {
			require.Equal(t, tc.code, fault.Of(err).Code)
		}
	}
	require.Equal(t, []string{"mongodb", "nfs", "rabbitmq", "redis"}, heal.Backends())
}
