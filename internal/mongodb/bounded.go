package mongodb

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"

	"go.mongodb.org/mongo-driver/mongo/options"
)

// maxAnswer is what a server may say to one question; hello and its like take
// some KiB. The driver takes as much memory as a message's header says, up to
// the limit that the server has named itself (maxMessageSizeBytes of hello).
const maxAnswer = 256 << 10

// bounded makes connections on which no server says too much.
type bounded struct{ options.ContextDialer }

// DialContext connects.
func (b bounded) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := b.ContextDialer.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return &boundedConn{Conn: conn}, nil
}

// boundedConn reads messages, each of which begins with its length, header
// included (MongoDB wire protocol, standard message header). TLS is below it.
type boundedConn struct {
	net.Conn
	since  int    // bytes since the last question
	header []byte // of the message that begins
	left   int    // bytes of the message that is being read
}

func (c *boundedConn) Write(p []byte) (int, error) {
	c.since = 0
	return c.Conn.Write(p)
}

func (c *boundedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.since += n; c.since > maxAnswer {
		return 0, c.excess(c.since)
	}
	for at := 0; at < n; {
		if c.left == 0 {
			take := min(4-len(c.header), n-at)
			c.header = append(c.header, p[at:at+take]...)
			at += take
			if len(c.header) < 4 {
				break
			}
			size := int(int32(binary.LittleEndian.Uint32(c.header)))
			if size < 16 || size > maxAnswer {
				return 0, c.excess(size)
			}
			c.header, c.left = c.header[:0], size-4
		}
		skip := min(c.left, n-at)
		c.left -= skip
		at += skip
	}
	return n, err
}

func (c *boundedConn) excess(size int) error {
	_ = c.Conn.Close()
	return fmt.Errorf("what answers is not MongoDB: a message of %d bytes", size)
}
