package rabbitmq

import (
	"encoding/binary"
	"fmt"
)

// maxUnanswered is how many messages a broker may deliver while nothing is
// sent to it. A consumer's prefetch is far below.
const maxUnanswered = 4096

// dialogue keeps account of the requests to a broker and of its answers. The
// library stops reading, and hangs with its caller, when an answer comes that
// nobody asked for, or one on a channel that is not open (connection.go,
// dispatch0 and dispatchClosed; channel.go, dispatch); and it counts up to
// whatever number a confirmation has (confirms.go).
type dialogue struct {
	skip      int    // bytes of an outgoing frame's rest
	head      []byte // of the outgoing frame that begins
	channels  map[uint16]*channelState
	delivered int // since something was sent
}

// channelState is what is under way on a channel.
type channelState struct {
	answers   int    // that are due
	published uint64 // messages
}

// questions are the methods that the library waits for an answer to.
var questions = map[uint32]bool{
	10<<16 | 11: true, 10<<16 | 21: true, 10<<16 | 40: true, 10<<16 | 50: true,
	20<<16 | 10: true, 20<<16 | 20: true, 20<<16 | 40: true,
	40<<16 | 10: true, 40<<16 | 20: true, 40<<16 | 30: true, 40<<16 | 40: true,
	50<<16 | 10: true, 50<<16 | 20: true, 50<<16 | 30: true, 50<<16 | 40: true, 50<<16 | 50: true,
	60<<16 | 10: true, 60<<16 | 20: true, 60<<16 | 30: true, 60<<16 | 70: true, 60<<16 | 110: true,
	85<<16 | 10: true, 90<<16 | 10: true, 90<<16 | 20: true, 90<<16 | 30: true,
}

// unasked are the methods that a broker sends without a request.
var unasked = map[uint32]bool{
	10<<16 | 50: true, 10<<16 | 60: true, 10<<16 | 61: true, 20<<16 | 20: true, 20<<16 | 40: true,
	60<<16 | 30: true, 60<<16 | 50: true, 60<<16 | 60: true, 60<<16 | 80: true, 60<<16 | 120: true,
}

const (
	channelOpen, channelClose, channelCloseOk = 20<<16 | 10, 20<<16 | 40, 20<<16 | 41
	publish, deliver, ack, nack               = 60<<16 | 40, 60<<16 | 60, 60<<16 | 80, 60<<16 | 120
)

// sent takes note of bytes that go to the broker.
func (d *dialogue) sent(p []byte) {
	if d.channels == nil {
		d.channels = map[uint16]*channelState{0: {answers: 1}} // Connection.Start, to the protocol's header
		d.skip = 8
	}
	for len(p) > 0 {
		if d.skip > 0 {
			n := min(d.skip, len(p))
			d.skip, p = d.skip-n, p[n:]
			continue
		}
		need := 7 // type, channel and size
		if len(d.head) >= need && d.head[0] == frameMethod {
			need += 4 // class and method
		}
		if n := min(need-len(d.head), len(p)); n > 0 {
			d.head, p = append(d.head, p[:n]...), p[n:]
		}
		if len(d.head) < 7 || d.head[0] == frameMethod && len(d.head) < 11 {
			continue
		}
		d.skip = 7 + int(binary.BigEndian.Uint32(d.head[3:])) + 1 - len(d.head)
		if d.head[0] == frameMethod {
			d.request(d.head)
		}
		d.head = d.head[:0]
	}
}

// request takes note of a method, by the first 11 bytes of its frame.
func (d *dialogue) request(head []byte) {
	d.delivered = 0
	channel, method := binary.BigEndian.Uint16(head[1:]), binary.BigEndian.Uint32(head[7:])
	if method == channelOpen {
		d.channels[channel] = &channelState{}
	}
	t := d.channels[channel]
	if t == nil {
		return
	}
	if questions[method] {
		t.answers++
	}
	if method == publish {
		t.published++
	}
}

// received checks that a frame of the broker is one that may come now.
func (d *dialogue) received(frame []byte) error {
	kind, channel := frame[0], binary.BigEndian.Uint16(frame[1:])
	if kind != frameMethod {
		if kind == frameHeartbeat != (channel == 0) {
			return fmt.Errorf("%w: a frame on the wrong channel", errFrame)
		}
		return nil
	}
	method := binary.BigEndian.Uint32(frame[7:])
	t := d.channels[channel]
	switch {
	case method>>16 == 10 != (channel == 0):
		return fmt.Errorf("%w: a method on the wrong channel", errFrame)
	case t == nil:
		if method != channelClose && method != channelCloseOk {
			return fmt.Errorf("%w: a method on a channel that is not open", errFrame)
		}
	case method == channelClose || method == channelCloseOk && t.answers > 0:
		delete(d.channels, channel)
	case method == deliver:
		if d.delivered++; d.delivered > maxUnanswered {
			return fmt.Errorf("%w: more than %d messages that nobody acknowledged", errFrame, maxUnanswered)
		}
	case method == ack || method == nack:
		if tag := binary.BigEndian.Uint64(frame[11:]); tag == 0 || tag > t.published {
			return fmt.Errorf("%w: a confirmation of what was not published", errFrame)
		}
	case unasked[method]:
	case t.answers == 0:
		return fmt.Errorf("%w: an answer to no question", errFrame)
	default:
		t.answers--
	}
	return nil
}
