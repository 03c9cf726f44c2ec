package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"time"

	"github.com/skeema/knownhosts"
	"golang.org/x/crypto/ssh"

	"st2ha/internal/action"
	"st2ha/internal/confedit"
	"st2ha/internal/enroll"
	"st2ha/internal/fault"
	"st2ha/internal/host"
	"st2ha/internal/join"
	"st2ha/internal/step"
)

// undoTime is what undoing an enrolment on all nodes may take, also once the action's own time is over.
const undoTime = 2 * time.Minute

// enrollCommand makes a new node known to the others, and them to it.
func enrollCommand() command {
	return command{exec: enrollNode, Spec: action.Spec{
		Name:    "enroll",
		Summary: "makes a new node and the others known to each other, by a login that people have",
		Description: `On the new node and all others: it is reached once by a login that people have; then each knows
the others' host keys and lets StackStorm's system user in, with one key. Proved by logins in all
directions. Without fingerprint it changes nothing, and shows the new node's host keys.`,
		Settings: slices.Concat([]action.Setting{
			{
				Name: "host", Default: "", Required: true,
				Help: `Address of the new node, as the other nodes reach it.`,
			},
			{Name: "user", Default: "", Required: true, Help: `A user of that node who may use sudo, or root.`},
			{
				Name: "password", Default: "", Secret: true,
				Help: `The user's password. It is used once, and stored nowhere on the nodes.`,
			},
			{
				Name: "private_key", Default: "", Secret: true,
				Help: `In place of the password, the user's private key: the whole text, without a passphrase.`,
			},
			{
				Name: "user_sudo_password", Default: "", Secret: true,
				Help: `What sudo asks this user for, where that is another password.`,
			},
			{
				Name: "fingerprint", Default: "",
				Help: `Fingerprint of the node's host key, SHA256:…, as ssh-keygen -l shows it on the node's console.
Without it nothing is changed, and the keys that the node offers are shown.`,
			},
		}, join.Kept("primary", "secondaries")),
		Rows: []action.Row{{Host: "all", Changes: "`/etc/ssh/ssh_known_hosts` has all nodes; the system user's account, " +
			"key, `authorized_keys` and `/etc/sudoers.d/st2` as StackStorm's installer makes them, with the primary's key"}},
	}}
}

// enrolment is one that is under way: the nodes, and what was found and changed on them so far.
type enrolment struct {
	*common
	result  step.Result
	fresh   host.Host   // the login to the new one; nil before that
	hosts   []host.Host // the new one first
	peers   []enroll.Peer
	changed []host.Host
}

func enrollNode(ctx context.Context, c *common, v action.Values) (step.Result, error) {
	e := &enrolment{common: c, result: c.result("enroll", v.String("host"))}
	err := e.run(ctx, v)
	if err != nil && len(e.changed) > 0 {
		err = e.undo(ctx, err)
	}
	if e.fresh != nil {
		_ = e.fresh.Close()
	}
	e.result.Fail(err, c.mask)
	e.result.Millis = time.Since(c.start).Milliseconds()
	return e.result, err
}

func (e *enrolment) run(ctx context.Context, v action.Values) error {
	address := v.String("host")
	if err := host.CheckAddress("host", address); err != nil {
		return err
	}
	login := host.Login{User: v.String("user"), Password: v.String("password"), Key: v.String("private_key"),
		SudoPassword: v.String("user_sudo_password"), Fingerprint: v.String("fingerprint")}
	if err := login.Check(); err != nil {
		return err
	}
	if !slices.Contains(e.ssh.KnownHosts, enroll.KnownHosts) {
		return fault.Usage("known_hosts has to name %s, which is where an enrolment writes host keys", enroll.KnownHosts)
	}
	if local, err := host.IsLocal(ctx, address); err != nil {
		return err
	} else if local {
		return fault.Usage("host %s is this machine: run it on the primary, and give the new node's address", address)
	}
	primary, err := e.cluster("").Primary(ctx, v.String("primary"), []string{address})
	if err != nil {
		return err
	}
	if primary == address {
		return fault.Usage("host %s is the primary: give the new node's address", address)
	}
	cfg := e.ssh
	cfg.Addr = address
	fresh, key, err := host.DialLogin(ctx, cfg, login)
	if err != nil {
		return err
	}
	e.fresh = fresh
	first, err := e.open(ctx, primary)
	if err != nil {
		return err
	}
	system, err := enroll.ReadSystem(ctx, first)
	if err != nil {
		return err
	}
	if system.User != e.ssh.User || system.KeyFile != e.ssh.KeyFile {
		return fault.Preflight("system_user",
			"make ssh_user and ssh_key of the pack's configuration the same, or leave them out",
			"%s: [system_user] of st2.conf is %s with %s, and the pack is to reach nodes as %s with %s", primary,
			system.User, system.KeyFile, e.ssh.User, e.ssh.KeyFile)
	}
	if err := e.meet(ctx, crashing(fresh), key); err != nil {
		return err
	}
	if err := e.meet(ctx, first, nil); err != nil {
		return err
	}
	for _, other := range v.List("secondaries") {
		if other == address || other == primary {
			continue
		}
		if err := e.meetOther(ctx, other); err != nil {
			return err
		}
	}
	for _, h := range e.hosts {
		if err := e.admit(ctx, system, h); err != nil {
			return err
		}
	}
	if e.dryRun {
		return nil
	}
	return enroll.Prove(ctx, system, e.ssh.Port, e.hosts)
}

// meet reads the keys of a host. seen is one that it has offered, where it was reached.
func (e *enrolment) meet(ctx context.Context, h host.Host, seen ssh.PublicKey) error {
	keys, err := enroll.HostKeys(ctx, h)
	if err != nil {
		return err
	}
	if seen != nil { // sshd's settings may name another file
		key, err := confedit.ParsePublicKey(string(ssh.MarshalAuthorizedKey(seen)))
		if err != nil {
			return err
		}
		if !slices.Contains(keys, key) {
			keys = append(keys, key)
		}
	}
	e.hosts = append(e.hosts, h)
	e.peers = append(e.peers, enroll.Peer{Keys: keys,
		Name: knownhosts.Normalize(net.JoinHostPort(h.Name(), strconv.Itoa(e.ssh.Port)))})
	return nil
}

// meetOther is for a secondary that is there already. One that cannot be reached may be a new one, too: it is left out.
func (e *enrolment) meetOther(ctx context.Context, address string) error {
	h, err := e.open(ctx, address)
	if err == nil {
		return e.meet(ctx, h, nil)
	}
	var f *fault.Error
	if !errors.As(err, &f) || f.Exit != fault.ExitPreflight {
		return err
	}
	e.result.Findings = append(e.result.Findings, step.Finding{
		Severity: step.Warning, Host: address, Check: "not_enrolled",
		Message: "this node is left out, for it cannot be reached: " + e.mask.Mask(err.Error()),
		Fix:     "enroll it as well, if it is new; else bring it back and run this again",
	})
	return nil
}

// admit runs the step on one host.
func (e *enrolment) admit(ctx context.Context, system *enroll.System, h host.Host) error {
	r, err := step.Run(ctx, &enroll.Admit{System: system, Peers: e.peers}, h, e.options())
	for _, change := range r.Changes {
		change.Host = h.Name()
		e.result.Changes = append(e.result.Changes, change)
	}
	e.result.Findings = append(e.result.Findings, r.Findings...)
	if r.Changed {
		e.result.Changed = true
		e.changed = append(e.changed, h)
	}
	return err
}

// undo takes back what was done on the hosts before the one that failed, or before the proof did.
func (e *enrolment) undo(ctx context.Context, why error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer cancel()
	f := fault.Of(why)
	for _, h := range slices.Backward(e.changed) {
		o := step.RollbackOptions{Options: e.options(), Only: e.common.run, Kinds: join.Kinds()}
		if _, err := step.Rollback(ctx, h, o); err != nil {
			return &fault.Error{Exit: fault.ExitUndoFailed, Code: "undo_failed",
				Hint: "remove the cause, then: st2 run st2ha.rollback host=" + h.Name() + " only=" + e.common.run,
				Err:  fmt.Errorf("%w; undoing it failed as well: %v", why, err)}
		}
	}
	e.result.Changed = false
	if f.Exit == fault.ExitUndoFailed { // on the host that failed; its step has said so
		return why
	}
	return &fault.Error{Exit: fault.ExitFailed, Code: f.Code, Hint: f.Hint,
		Err: fmt.Errorf("%w; what was changed is undone on all nodes", why)}
}
