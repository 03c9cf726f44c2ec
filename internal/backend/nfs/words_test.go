package nfs

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"st2ha/internal/probe"
	"st2ha/internal/rpcping"
)

func refused(s rpcping.Status) error {
	return &rpcping.StatusError{At: "/opt/stackstorm", Status: s}
}

// What people read for each way in which a look at an export ends; servers in
// reach give only some of them.
func TestExportWords(t *testing.T) {
	for _, c := range []struct {
		err     error
		verdict probe.Verdict
		reason  string
	}{
		{nil, probe.Good, ""},
		{refused(rpcping.NoEnt), probe.Bad, "export /opt/packs withdrawn"},
		{refused(rpcping.Stale), probe.Bad, "export /opt/packs: its directory was deleted or replaced on the server"},
		{refused(rpcping.NotDir), probe.Bad, "export /opt/packs: /opt/stackstorm is no directory"},
		{refused(rpcping.Access), probe.Bad, "export /opt/packs: access to /opt/stackstorm denied"},
		{refused(rpcping.Perm), probe.Bad, "export /opt/packs: the server does not permit this node"},
		{refused(rpcping.IO), probe.Bad, "export /opt/packs: input/output error on the server"},
		{refused(rpcping.WrongSec), probe.Unknown,
			"export /opt/packs cannot be checked: the server wants another security flavor, such as Kerberos"},
		{refused(rpcping.Delay), probe.Silent, "export /opt/packs: the server puts off its answer"},
		{refused(10006), probe.Bad, "export /opt/packs: the server answers nfsstat4 10006 at /opt/stackstorm"},
		{&rpcping.MismatchError{Low: 3, High: 3}, probe.Unknown,
			"export /opt/packs cannot be checked: the server speaks NFS version 3 only"},
		{&rpcping.RejectedError{Reason: "rejected credentials"}, probe.Bad, "export /opt/packs: rejected credentials"},
		{&rpcping.RejectedError{Reason: "bad credentials", NoExport: true}, probe.Bad,
			"export /opt/packs withdrawn: the server exports nothing to this node"},
		{context.DeadlineExceeded, probe.Silent, "export /opt/packs: no answer for 500 ms"},
		{fmt.Errorf("%w: %w", rpcping.ErrClosed, rpcping.ErrProtocol), probe.Bad,
			"export /opt/packs: the answer is not one of an NFS server"},
	} {
		verdict, reason := exportFault(c.err, "/opt/packs", 500*time.Millisecond)
		require.Equal(t, c.verdict, verdict, c.reason)
		require.Equal(t, c.reason, reason)
	}
}
