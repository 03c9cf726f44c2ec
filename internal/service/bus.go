package service

import (
	"context"
	"fmt"
	"path"
	"strings"

	"github.com/coreos/go-systemd/v22/dbus"
)

// Bus asks this machine's systemd over a connection that stays open (org.freedesktop.systemd1(5)): for a watch that asks
// each second, a program each time would be most of its work. It is not for more than one goroutine.
type Bus struct {
	dial func(context.Context) (systemd, error) // this machine's if nil
	conn systemd
	end  context.CancelFunc
}

// systemd is what is asked of systemd.
type systemd interface {
	ListUnitsByNamesContext(ctx context.Context, units []string) ([]dbus.UnitStatus, error)
	ListUnitsByPatternsContext(ctx context.Context, states, patterns []string) ([]dbus.UnitStatus, error)
	Close()
}

// States does what the function of that name does. A connection that is broken is replaced: systemd closes it when it is
// executed anew, and the bus when it is restarted.
func (b *Bus) States(ctx context.Context, units ...string) ([]State, error) {
	kept := b.conn != nil
	states, err := b.ask(ctx, units)
	if err != nil && kept && ctx.Err() == nil {
		states, err = b.ask(ctx, units)
	}
	if err != nil {
		return nil, fmt.Errorf("ask systemd for the state of %s: %w", strings.Join(units, ", "), err)
	}
	return states, nil
}

// Close ends the connection.
func (b *Bus) Close() {
	if b.conn != nil {
		b.conn.Close()
		b.end()
		b.conn, b.end = nil, nil
	}
}

func (b *Bus) ask(ctx context.Context, units []string) (states []State, err error) {
	defer func() {
		if err != nil {
			b.Close()
		}
	}()
	if err := b.open(ctx); err != nil {
		return nil, err
	}
	var names, patterns []string
	for _, unit := range units {
		if path.Ext(unit) == "" {
			unit += ".service"
		}
		if strings.ContainsAny(unit, "*?[") {
			patterns = append(patterns, unit)
		} else {
			names = append(names, unit)
		}
	}
	found, err := b.conn.ListUnitsByNamesContext(ctx, names)
	if err != nil {
		return nil, err
	}
	if len(patterns) > 0 { // none would be any
		more, err := b.conn.ListUnitsByPatternsContext(ctx, nil, patterns)
		if err != nil {
			return nil, err
		}
		found = append(found, more...)
	}
	for _, u := range found {
		states = append(states, State{Unit: u.Name, Active: u.ActiveState, Sub: u.SubState})
	}
	return states, nil
}

// open connects unless that is done. The connection outlives ctx, which bounds only its opening.
func (b *Bus) open(ctx context.Context) error {
	if b.conn != nil {
		return nil
	}
	dial := b.dial
	if dial == nil {
		dial = func(ctx context.Context) (systemd, error) { return dbus.NewWithContext(ctx) }
	}
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, end)
	conn, err := dial(life)
	if err != nil {
		end()
		return err
	}
	if b.conn, b.end = conn, end; !stop() {
		return context.Cause(ctx)
	}
	return nil
}
