package rabbitmq

import (
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"st2ha/internal/backendtest"
	"st2ha/internal/probe"
	"st2ha/internal/probe/probetest"
	client "st2ha/internal/rabbitmq"
)

var shared = &backendtest.Shared{Users: []string{"st2", "watched", "restricted"}}

// TestMain ends the tests' servers.
func TestMain(m *testing.M) { os.Exit(shared.Run(m)) }

// guest is the login of a user of a test's own, with a vhost of its own.
func guest(t testing.TB, name string) client.Login {
	broker := shared.Broker(t)
	return client.Login{Addr: broker.Addr, User: name, Password: backendtest.Password, VHost: name}
}

func TestRabbitMQAlarm(t *testing.T) {
	broker := shared.Broker(t)
	check := backendtest.NoLeaks(t)
	w := probetest.Start(t, Watch(Settings{Login: probetest.BrokerLogin(broker.Addr),
		Timing: probe.Timing{LoginEvery: 300 * time.Millisecond}}))
	w.Is(probe.Ping, probe.Good, "")
	w.Is(probe.Login, probe.Good, "")
	restore := func() { broker.MustCtl(t, "", "set_vm_memory_high_watermark", "0.8") }
	t.Cleanup(restore)
	broker.MustCtl(t, "", "set_vm_memory_high_watermark", "0.00001")
	o := w.Is(probe.Alarm, probe.Bad, "memory alarm: publishers are blocked")
	require.Equal(t, 1, o.Limit.Down)
	w.Is(probe.Alarm, probe.Bad, "memory alarm: publishers are blocked")
	w.Is(probe.Login, probe.Good, "") // logins still work
	restore()
	w.Is(probe.Alarm, probe.Good, "")
	w.Is(probe.Ping, probe.Good, "")
	for _, o := range w.Reports() {
		require.Equal(t, probe.Good, o.Verdict, "%+v", o)
	}
	broker.MustCtl(t, "", "set_disk_free_limit", "1000000GB")
	t.Cleanup(func() { broker.MustCtl(t, "", "set_disk_free_limit", "1MB") })
	w.Is(probe.Alarm, probe.Bad, "disk alarm: publishers are blocked")
	w.End() // while blocked
	check()
}

func TestRabbitMQAccess(t *testing.T) {
	broker := shared.Broker(t)
	t.Parallel() // most of the time is rabbitmqctl's
	l := guest(t, "watched")
	w := probetest.Start(t, Watch(Settings{Login: l, Timing: probe.Timing{LoginEvery: 300 * time.Millisecond}}))
	w.Is(probe.Login, probe.Good, "")
	w.Is(probe.Ping, probe.Good, "")

	broker.MustCtl(t, "", "set_permissions", "-p", l.VHost, l.User, ".*", "", ".*")
	w.Is(probe.Login, probe.Bad, "login refused: no permission to write: …")
	broker.MustCtl(t, "", "set_permissions", "-p", l.VHost, l.User, ".*", ".*", ".*")
	w.Is(probe.Login, probe.Good, "")

	broker.MustCtl(t, "another\n", "change_password", l.User)
	w.Is(probe.Login, probe.Bad, "login refused: user watched does not exist, or has another password")
	w.Is(probe.Ping, probe.Good, "") // the connection that is open is not affected
	broker.MustCtl(t, l.Password+"\n", "change_password", l.User)
	w.Is(probe.Login, probe.Good, "")

	broker.MustCtl(t, "", "delete_vhost", l.VHost)
	w.Is(probe.Login, probe.Bad, "login refused: vhost watched not found")
}

func TestRabbitMQUserDeleted(t *testing.T) {
	broker := shared.Broker(t)
	t.Parallel() // most of the time is rabbitmqctl's
	l := guest(t, "st2")
	w := probetest.Start(t, Watch(Settings{Login: l}))
	w.Is(probe.Ping, probe.Good, "")
	broker.MustCtl(t, "", "delete_user", l.User)
	o := w.Is(probe.Login, probe.Bad, "login refused: user st2 deleted")
	require.Equal(t, 1, o.Limit.Down)
	broker.MustCtl(t, l.Password+"\n", "add_user", l.User)
	w.Is(probe.Login, probe.Bad, "login refused: access to vhost 'st2' refused for user 'st2'")
	broker.MustCtl(t, "", "set_permissions", "-p", l.VHost, l.User, ".*", ".*", ".*")
	w.Is(probe.Ping, probe.Good, "")
}

// A user may be restricted to the names that StackStorm uses: that is no fault.
func TestRabbitMQRestricted(t *testing.T) {
	broker := shared.Broker(t)
	t.Parallel() // most of the time is rabbitmqctl's
	l := guest(t, "restricted")
	broker.MustCtl(t, "", "set_permissions", "-p", l.VHost, l.User, `^st2\.`, `^st2\.`, `^st2\.`)
	w := probetest.Start(t, Watch(Settings{Login: l, Timing: probe.Timing{LoginEvery: 300 * time.Millisecond}}))
	for range 3 {
		w.Is(probe.Ping, probe.Good, "")
		w.Is(probe.Login, probe.Good, "")
	}
}
