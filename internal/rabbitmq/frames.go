package rabbitmq

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/streadway/amqp"

	"st2ha/internal/secure"
)

const (
	// maxFrame is agreed with the broker, and RabbitMQ's own default (frame_max).
	maxFrame = 128 << 10
	// maxBody is one message's; an event's record in the spool is no longer. What
	// is, up to what RabbitMQ takes at most (max_message_size), is given as empty.
	maxBody, maxMessage = 1 << 20, 512 << 20
	// maxDepth is of tables and arrays in each other. RabbitMQ's own have three.
	maxDepth = 8

	frameMethod, frameHeader, frameBody, frameHeartbeat = 1, 2, 3, 8
	frameEnd                                            = 0xce
)

// errFrame is what no AMQP broker sends.
var errFrame = errors.New("what answers is no AMQP 0-9-1 broker")

// serverMethods are the methods that a broker sends, class<<16|method, with
// their fields (AMQP 0-9-1 and RabbitMQ's extensions; streadway/amqp 1.1.0,
// spec091.go): s a short string, l a long one, t a table, a digit so many bytes.
var serverMethods = map[uint32]string{
	10<<16 | 10: "11tll", 10<<16 | 20: "l", 10<<16 | 30: "242", 10<<16 | 41: "s", // connection
	10<<16 | 50: "2s22", 10<<16 | 51: "", 10<<16 | 60: "s", 10<<16 | 61: "",
	20<<16 | 11: "l", 20<<16 | 20: "1", 20<<16 | 21: "1", 20<<16 | 40: "2s22", 20<<16 | 41: "", // channel
	40<<16 | 11: "", 40<<16 | 21: "", 40<<16 | 31: "", 40<<16 | 51: "", // exchange
	50<<16 | 11: "s44", 50<<16 | 21: "", 50<<16 | 31: "4", 50<<16 | 41: "4", 50<<16 | 51: "", // queue
	60<<16 | 11: "", 60<<16 | 21: "s", 60<<16 | 30: "s1", 60<<16 | 31: "s", 60<<16 | 50: "2sss", // basic
	60<<16 | 60: "s81ss",
	60<<16 | 71: "81ss4", 60<<16 | 72: "s", 60<<16 | 80: "81", 60<<16 | 111: "", 60<<16 | 120: "81",
	85<<16 | 11: "",                                   // confirm
	90<<16 | 11: "", 90<<16 | 21: "", 90<<16 | 31: "", // tx
}

// properties are the fields of a content header, from its highest flag down to
// the lowest that the library reads (AMQP 0-9-1, class basic; types.go).
const properties = "sst11ssss8ssss"

// readFrame reads one frame into buf, which it may replace, and checks that the
// library can be given it: the library allocates what a frame announces as the
// length of a message or string, before it has a byte of it, and follows nested
// tables however deep they are.
func readFrame(r io.Reader, buf []byte) ([]byte, error) {
	buf = append(buf[:0], make([]byte, 7)...)
	if _, err := io.ReadFull(r, buf); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(buf[3:])
	switch buf[0] {
	case frameMethod, frameHeader, frameBody, frameHeartbeat:
	default:
		if err := secure.ExplainAnswer(buf); err != nil {
			return nil, err
		}
		return nil, errFrame
	}
	if size > maxFrame-8 {
		return nil, fmt.Errorf("%w: a frame of %d bytes", errFrame, size)
	}
	buf = append(buf, make([]byte, size+1)...)
	if _, err := io.ReadFull(r, buf[7:]); err != nil {
		return nil, err
	}
	if buf[len(buf)-1] != frameEnd {
		return nil, fmt.Errorf("%w: a frame without its end", errFrame)
	}
	return buf, checkPayload(buf[0], buf[7:len(buf)-1])
}

// checkPayload sees that the library reads a payload to its end and no
// further. What it reads of a frame too many or too few would move all that
// comes after.
func checkPayload(kind byte, payload []byte) error {
	f := &fields{rest: payload}
	switch kind {
	case frameMethod:
		id := f.number(4)
		format, known := serverMethods[uint32(id)]
		if !known {
			return fmt.Errorf("%w: method %d of class %d", errFrame, id&0xffff, id>>16)
		}
		f.all(format)
	case frameHeader:
		f.next(4)
		if size := f.number(8); size > maxMessage {
			return fmt.Errorf("%w: a message of %d bytes", errFrame, size)
		}
		flags := f.number(2)
		for i := range properties {
			if flags&(1<<15>>i) != 0 {
				f.all(properties[i : i+1])
			}
		}
	case frameBody:
		return nil
	}
	if f.bad || len(f.rest) > 0 {
		return fmt.Errorf("%w: a frame whose fields do not fit it", errFrame)
	}
	return nil
}

// shortener leaves out the bodies that are too long: whoever consumes a queue
// would get such a message again and again if it ended the connection.
type shortener map[uint16]uint64 // bytes of a body that are left, by channel

// passes says whether the library is given a frame, which it may change.
func (s shortener) passes(frame []byte) (bool, error) {
	channel, payload := binary.BigEndian.Uint16(frame[1:]), frame[7:len(frame)-1]
	switch frame[0] {
	case frameHeader:
		delete(s, channel)
		if size := binary.BigEndian.Uint64(payload[4:]); size > maxBody {
			s[channel] = size
			binary.BigEndian.PutUint64(payload[4:], 0)
		}
	case frameBody:
		if left := s[channel]; left > 0 {
			if uint64(len(payload)) > left {
				return false, fmt.Errorf("%w: a body that is longer than its header says", errFrame)
			}
			s[channel] = left - uint64(len(payload))
			return false, nil
		}
	}
	return true, nil
}

// fields reads what a frame is made of; once it has failed it gives zeros.
type fields struct {
	rest []byte
	bad  bool
}

func (f *fields) next(n uint64) []byte {
	if n > uint64(len(f.rest)) {
		f.rest, f.bad = nil, true
		return nil
	}
	b := f.rest[:n]
	f.rest = f.rest[n:]
	return b
}

func (f *fields) number(bytes uint64) (n uint64) {
	for _, b := range f.next(bytes) {
		n = n<<8 | uint64(b)
	}
	return n
}

func (f *fields) all(format string) {
	for _, c := range format {
		switch c {
		case 's':
			f.next(f.number(1))
		case 'l':
			f.next(f.number(4))
		case 't':
			f.table(1)
		default:
			f.next(uint64(c - '0'))
		}
	}
}

func (f *fields) table(depth int) {
	in := &fields{rest: f.next(f.number(4))}
	for len(in.rest) > 0 {
		in.next(in.number(1)) // its name
		in.value(depth)
	}
	f.bad = f.bad || in.bad
}

func (f *fields) array(depth int) {
	in := &fields{rest: f.next(f.number(4))}
	for len(in.rest) > 0 {
		in.value(depth)
	}
	f.bad = f.bad || in.bad
}

// value is one field of a table: its kind and what is in it (RabbitMQ, "AMQP
// 0-9-1 Errata and Clarifications", section 3, as far as the library reads it).
func (f *fields) value(depth int) {
	if depth > maxDepth {
		f.rest, f.bad = nil, true
		return
	}
	switch f.number(1) {
	case 't', 'b':
		f.next(1)
	case 's':
		f.next(2)
	case 'I', 'f':
		f.next(4)
	case 'l', 'd', 'T':
		f.next(8)
	case 'D':
		f.next(5)
	case 'S', 'x':
		f.next(f.number(4))
	case 'A':
		f.array(depth + 1)
	case 'F':
		f.table(depth + 1)
	case 'V':
	default:
		f.rest, f.bad = nil, true
	}
}

// closeReason is the broker's Connection.Close, if a frame is one (sections 2.3.5
// and 1.4.2.10: class 10, method 50, reply code, reply text).
func closeReason(frame []byte) *amqp.Error {
	f := &fields{rest: frame[7 : len(frame)-1]}
	if frame[0] != frameMethod || f.number(4) != 10<<16|50 {
		return nil
	}
	code := f.number(2)
	return &amqp.Error{Code: int(code), Reason: string(f.next(f.number(1))), Server: true}
}
