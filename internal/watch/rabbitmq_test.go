package watch

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"st2ha/internal/backendtest"
	"st2ha/internal/rabbitmq"
)

// guest is the login of a user of a test's own, with a vhost of its own.
func guest(t testing.TB, name string) rabbitmq.Login {
	broker := shared.Broker(t)
	return rabbitmq.Login{Addr: broker.Addr, User: name, Password: backendtest.Password, VHost: name}
}

func TestRabbitMQAlarm(t *testing.T) {
	broker := shared.Broker(t)
	check := backendtest.NoLeaks(t)
	w := start(t, WatchRabbitMQ(RabbitMQSettings{Login: brokerLogin(broker.Addr), Timing: Timing{LoginEvery: 300 * time.Millisecond}}))
	w.is(ProbePing, Good, "")
	w.is(ProbeLogin, Good, "")
	restore := func() { broker.MustCtl(t, "", "set_vm_memory_high_watermark", "0.8") }
	t.Cleanup(restore)
	broker.MustCtl(t, "", "set_vm_memory_high_watermark", "0.00001")
	o := w.is(ProbeAlarm, Bad, "memory alarm: publishers are blocked")
	require.Equal(t, 1, o.Limit.Down)
	w.is(ProbeAlarm, Bad, "memory alarm: publishers are blocked")
	w.is(ProbeLogin, Good, "") // logins still work
	restore()
	w.is(ProbeAlarm, Good, "")
	w.is(ProbePing, Good, "")
	for _, o := range w.reports() {
		require.Equal(t, Good, o.Verdict, "%+v", o)
	}
	broker.MustCtl(t, "", "set_disk_free_limit", "1000000GB")
	t.Cleanup(func() { broker.MustCtl(t, "", "set_disk_free_limit", "1MB") })
	w.is(ProbeAlarm, Bad, "disk alarm: publishers are blocked")
	w.end() // while blocked
	check()
}

func TestRabbitMQAccess(t *testing.T) {
	broker := shared.Broker(t)
	t.Parallel() // most of the time is rabbitmqctl's
	l := guest(t, "watched")
	w := start(t, WatchRabbitMQ(RabbitMQSettings{Login: l, Timing: Timing{LoginEvery: 300 * time.Millisecond}}))
	w.is(ProbeLogin, Good, "")
	w.is(ProbePing, Good, "")

	broker.MustCtl(t, "", "set_permissions", "-p", l.VHost, l.User, ".*", "", ".*")
	w.is(ProbeLogin, Bad, "login refused: no permission to write: …")
	broker.MustCtl(t, "", "set_permissions", "-p", l.VHost, l.User, ".*", ".*", ".*")
	w.is(ProbeLogin, Good, "")

	broker.MustCtl(t, "another\n", "change_password", l.User)
	w.is(ProbeLogin, Bad, "login refused: user watched does not exist, or has another password")
	w.is(ProbePing, Good, "") // the connection that is open is not affected
	broker.MustCtl(t, l.Password+"\n", "change_password", l.User)
	w.is(ProbeLogin, Good, "")

	broker.MustCtl(t, "", "delete_vhost", l.VHost)
	w.is(ProbeLogin, Bad, "login refused: vhost watched not found")
}

func TestRabbitMQUserDeleted(t *testing.T) {
	broker := shared.Broker(t)
	t.Parallel() // most of the time is rabbitmqctl's
	l := guest(t, "st2")
	w := start(t, WatchRabbitMQ(RabbitMQSettings{Login: l}))
	w.is(ProbePing, Good, "")
	broker.MustCtl(t, "", "delete_user", l.User)
	o := w.is(ProbeLogin, Bad, "login refused: user st2 deleted")
	require.Equal(t, 1, o.Limit.Down)
	broker.MustCtl(t, l.Password+"\n", "add_user", l.User)
	w.is(ProbeLogin, Bad, "login refused: access to vhost 'st2' refused for user 'st2'")
	broker.MustCtl(t, "", "set_permissions", "-p", l.VHost, l.User, ".*", ".*", ".*")
	w.is(ProbePing, Good, "")
}

// A user may be restricted to the names that StackStorm uses: that is no fault.
func TestRabbitMQRestricted(t *testing.T) {
	broker := shared.Broker(t)
	t.Parallel() // most of the time is rabbitmqctl's
	l := guest(t, "restricted")
	broker.MustCtl(t, "", "set_permissions", "-p", l.VHost, l.User, `^st2\.`, `^st2\.`, `^st2\.`)
	w := start(t, WatchRabbitMQ(RabbitMQSettings{Login: l, Timing: Timing{LoginEvery: 300 * time.Millisecond}}))
	for range 3 {
		w.is(ProbePing, Good, "")
		w.is(ProbeLogin, Good, "")
	}
}
