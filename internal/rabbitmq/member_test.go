package rabbitmq

import (
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"st2ha/internal/backendtest"
)

func group(list int32) Group { return Group{Name: "test", List: list, Label: "list of nodes"} }

// What one node holds no other one gets, until its connection ends, in whatever way.
func TestMember(t *testing.T) {
	broker := shared.Broker(t)
	check := backendtest.NoLeaks(t)
	through := proxy(t)
	join := func(addr string, list int32, node string) (*Member, error) {
		return JoinGroup(t.Context(), &net.Dialer{}, brokerLogin(addr), group(list), node)
	}
	a, err := join(broker.Addr, 7, "a")
	require.NoError(t, err)
	b, err := join(through.Addr, 7, "b")
	require.NoError(t, err)
	present := func(m *Member, node string) bool {
		t.Helper()
		yes, err := m.Present(t.Context(), node)
		require.NoError(t, err)
		return yes
	}
	claim := func(m *Member, part string) bool {
		t.Helper()
		mine, err := m.Claim(t.Context(), part)
		require.NoError(t, err)
		return mine
	}
	require.True(t, present(a, "b") && present(b, "a"))
	require.False(t, present(a, "c"))
	require.True(t, claim(b, "0.1"))
	require.True(t, claim(b, "0.1"), "it is its own")
	require.False(t, claim(a, "0.1"))
	require.True(t, claim(a, "timers"))
	require.NoError(t, a.Ask(t.Context()))
	require.NoError(t, b.Ask(t.Context()))
	require.NoError(t, b.Release(t.Context(), "0.1"))
	require.True(t, claim(a, "0.1"))
	require.False(t, claim(b, "0.1"))
	require.NoError(t, b.Ask(t.Context()), "a refused claim ends no session")

	_, err = join(broker.Addr, 7, "b")
	require.EqualError(t, err, "an older connection of b is still there")
	_, err = join(broker.Addr, 8, "c")
	require.EqualError(t, err, "another list of nodes than this node's is in use in the cluster")

	// A cable that is pulled: the broker notices by itself, and the node by the answer that does not come.
	require.True(t, claim(b, "1.0"))
	through.Hold()
	require.ErrorContains(t, b.Ask(t.Context()), "no answer")
	b.Close()
	through.Close() // the broker sees the end of the connection
	require.Eventually(t, func() bool { return !present(a, "b") && claim(a, "1.0") }, 10*time.Second, 20*time.Millisecond)

	// As long as one of the old list is there, none of a new one comes in; then it does at once.
	_, err = join(broker.Addr, 8, "c")
	require.ErrorContains(t, err, "another list of nodes")
	a.Close()
	var c *Member
	require.Eventually(t, func() bool { c, err = join(broker.Addr, 8, "c"); return err == nil },
		10*time.Second, 20*time.Millisecond)
	require.True(t, claim(c, "1.0"))

	// A queue that somebody deletes is held no more, and its holder hears of it.
	broker.MustCtl(t, "", "delete_queue", "st2ha.test.member.c")
	require.ErrorContains(t, c.Ask(t.Context()), "queue st2ha.test.member.c")
	c.Close()
	check()
}

// The broker restarts: all is free, and an agent whose user may not declare hears which permission it lacks.
func TestMemberAfterRestart(t *testing.T) {
	broker, err := backendtest.NewBroker(t, t.TempDir())
	require.NoError(t, err)
	t.Cleanup(broker.Close)
	join := func(list int32) (*Member, error) {
		return JoinGroup(t.Context(), &net.Dialer{}, brokerLogin(broker.Addr), group(list), "a")
	}
	m, err := join(1)
	require.NoError(t, err)
	broker.Kill()
	require.Error(t, m.Ask(t.Context()))
	m.Close()
	require.NoError(t, broker.Start())
	// The list is durable: another one has to wait until it has expired.
	require.Eventually(t, func() bool { m, err = join(2); return err == nil }, 30*time.Second, 100*time.Millisecond)
	mine, err := m.Claim(t.Context(), "x")
	require.NoError(t, err)
	require.True(t, mine)
	m.Close()
	broker.MustCtl(t, "", "set_permissions", backendtest.User, "none", ".*", ".*")
	_, err = join(2)
	require.ErrorIs(t, err, ErrForbidden)
	require.ErrorContains(t, err, "configure")
}
