package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/streadway/amqp"

	"st2ha/internal/secure"
)

// Group is a number of nodes that share work out among themselves. Each of them must have the same list of them.
type Group struct {
	Name  string // before the names of its queues
	List  int32  // a number for the list of nodes, and of whatever else they must agree on
	Label string // what the number stands for, for people
}

// Member is one node's connection to its group. What it holds are queues that are exclusive to the connection: the
// broker gives each of them to one only, and takes them when the connection ends, whoever ends it.
//
// The group's list is a queue that all members consume, and that goes with the last of them. The number is its
// x-max-length, by which the broker refuses whoever declares it with another one: so members with another list come in
// only once all connections of the former ones have ended, also that of a node which nobody reaches.
type Member struct {
	conn    *Connection
	group   Group
	channel *amqp.Channel
	held    []string // names of queues; the list's and the member's own are the first two
}

// listExpires is after how many milliseconds the broker drops a list that nobody has come to consume.
const listExpires = 10_000

// JoinGroup connects a node to its group. It fails if another list is in use, or an older connection of the node is.
func JoinGroup(ctx context.Context, d secure.ContextDialer, l Login, g Group, node string) (*Member, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	conn, err := Dial(ctx, d, l)
	if err != nil {
		return nil, err
	}
	m := &Member{conn: conn, group: g}
	if err := conn.Within(ctx, func() error { return m.join(node) }); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return m, nil
}

func (m *Member) join(node string) (err error) {
	if m.channel, err = m.conn.Channel(); err != nil {
		return err
	}
	// Durable, for newer brokers refuse shared queues that are not.
	list := m.name("list")
	_, err = m.channel.QueueDeclare(list, true, true, false, false,
		amqp.Table{"x-max-length": m.group.List, "x-expires": int32(listExpires), "x-queue-type": "classic"})
	var said *amqp.Error
	if errors.As(err, &said) && said.Code == amqp.PreconditionFailed {
		return fmt.Errorf("another %s than this node's is in use in the cluster", m.group.Label)
	}
	if err != nil {
		return permission(err, "configure")
	}
	messages, err := m.channel.Consume(list, "", true, false, false, false, nil)
	if err != nil {
		return permission(err, "read")
	}
	go func() {
		for range messages { // until the channel ends; nobody sends any
		}
	}()
	m.held = []string{list}
	switch mine, err := m.declare("member." + node); {
	case err != nil:
		return err
	case !mine:
		return fmt.Errorf("an older connection of %s is still there", node)
	}
	return nil
}

func (m *Member) name(what string) string { return "st2ha." + m.group.Name + "." + what }

// within is one conversation with the broker.
func (m *Member) within(ctx context.Context, f func() error) error {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	return m.conn.Within(ctx, f)
}

// declare takes a queue, on a channel of its own: the broker closes it with each refusal.
func (m *Member) declare(what string) (mine bool, err error) {
	channel, err := m.conn.Channel()
	if err != nil {
		return false, err
	}
	_, err = channel.QueueDeclare(m.name(what), false, false, true, false, nil)
	var said *amqp.Error
	if errors.As(err, &said) && said.Code == amqp.ResourceLocked {
		return false, nil
	}
	if err != nil {
		return false, permission(err, "configure")
	}
	m.held = append(m.held, m.name(what))
	return true, channel.Close()
}

// Ask proves that all that is held is there: a queue may have been deleted by hand.
func (m *Member) Ask(ctx context.Context) error {
	return m.within(ctx, func() error {
		for _, queue := range m.held {
			if _, err := m.channel.QueueInspect(queue); err != nil {
				return fmt.Errorf("queue %s: %w", queue, permission(err, "read"))
			}
		}
		return nil
	})
}

// Present says whether another node of the group is connected.
func (m *Member) Present(ctx context.Context, node string) (present bool, err error) {
	err = m.within(ctx, func() error {
		channel, err := m.conn.Channel()
		if err != nil {
			return err
		}
		var said *amqp.Error
		_, err = channel.QueueInspect(m.name("member." + node))
		switch {
		case err == nil:
			return fmt.Errorf("the queue %s is exclusive to nobody", m.name("member."+node))
		case errors.As(err, &said) && said.Code == amqp.ResourceLocked:
			present = true
			return nil
		case errors.As(err, &said) && said.Code == amqp.NotFound:
			return nil
		}
		return permission(err, "read")
	})
	return present, err
}

// Claim takes a part of the work; false if another node has it.
func (m *Member) Claim(ctx context.Context, part string) (mine bool, err error) {
	err = m.within(ctx, func() error {
		mine, err = m.declare("part." + part)
		return err
	})
	return mine, err
}

// Release gives a part up.
func (m *Member) Release(ctx context.Context, part string) error {
	return m.within(ctx, func() error {
		name := m.name("part." + part)
		m.held = slices.DeleteFunc(m.held, func(queue string) bool { return queue == name })
		if _, err := m.channel.QueueDelete(name, false, false, false); err != nil {
			return permission(err, "configure")
		}
		return nil
	})
}

// Close ends the connection; all that was held is free.
func (m *Member) Close() { _ = m.conn.Close() }
