package mongodb

import (
	"encoding/binary"
	"io"
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.mongodb.org/mongo-driver/bson"

	"st2ha/internal/testenv"
)

// message is an OP_MSG that answers the question with that header (MongoDB wire protocol).
func message(t testing.TB, question []byte, body any) []byte {
	doc, err := bson.Marshal(body)
	require.NoError(t, err)
	m := binary.LittleEndian.AppendUint32(nil, uint32(16+5+len(doc)))
	m = append(m, 0, 0, 0, 0)
	m = append(m, question[4:8]...)
	m = binary.LittleEndian.AppendUint32(m, 2013)
	return append(append(m, 0, 0, 0, 0, 0), doc...)
}

// reply is the OP_REPLY that the driver's first hello is answered by.
func reply(t testing.TB, question []byte, body any) []byte {
	doc, err := bson.Marshal(body)
	require.NoError(t, err)
	m := binary.LittleEndian.AppendUint32(nil, uint32(16+20+len(doc)))
	m = append(m, 0, 0, 0, 0)
	m = append(m, question[4:8]...)
	m = binary.LittleEndian.AppendUint32(m, 1)
	m = append(m, make([]byte, 16)...)
	return append(append(m, 1, 0, 0, 0), doc...)
}

// server answers each question by what say returns of its number.
func server(t testing.TB, say func(n int, question []byte) []byte) string {
	return testenv.Serve(t, func(conn net.Conn) {
		for n := 0; ; n++ {
			header := make([]byte, 16)
			if _, err := io.ReadFull(conn, header); err != nil {
				return
			}
			rest := make([]byte, binary.LittleEndian.Uint32(header)-16)
			if _, err := io.ReadFull(conn, rest); err != nil {
				return
			}
			if _, err := conn.Write(say(n, header)); err != nil {
				return
			}
		}
	})
}

func nestedDoc(n int) bson.D {
	d := bson.D{}
	for range n {
		d = bson.D{{Key: "", Value: d}}
	}
	return d
}

// Whatever a server says, it takes little memory.
func TestHostileServer(t *testing.T) {
	hello := bson.D{{Key: "ok", Value: 1}, {Key: "isWritablePrimary", Value: true}, {Key: "maxWireVersion", Value: 21},
		{Key: "minWireVersion", Value: 0},
		{Key: "maxBsonObjectSize", Value: 16 << 20}, {Key: "maxMessageSizeBytes", Value: int32(1<<31 - 1)},
		{Key: "maxWriteBatchSize", Value: 100000}}
	huge := []byte{0xff, 0xff, 0xff, 0x7f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	for name, say := range map[string]func(n int, question []byte) []byte{
		"2 GB at once": func(int, []byte) []byte { return huge },
		"2 GB by a limit of its own": func(n int, q []byte) []byte {
			if n == 0 {
				return reply(t, q, hello)
			}
			return huge
		},
		"a message of -1 bytes": func(int, []byte) []byte { return []byte("\xff\xff\xff\xff............") },
		"something else":        func(int, []byte) []byte { return []byte("HTTP/1.1 400 Bad Request\r\n\r\n") },
		"16 MB of messages":     func(_ int, q []byte) []byte { return make([]byte, 16<<20) },
		"deep documents": func(n int, q []byte) []byte {
			doc := append(hello[:len(hello):len(hello)], bson.E{Key: "x", Value: nestedDoc(3000)})
			if n == 0 {
				return reply(t, q, doc)
			}
			return message(t, q, doc)
		},
	} {
		t.Run(name, func(t *testing.T) {
			addr := server(t, say)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			opts := Options(&net.Dialer{}, Server{URI: "mongodb://" + addr},
				addr).SetServerSelectionTimeout(200 * time.Millisecond).SetTimeout(time.Second)
			var into bson.M
			err := ask(t.Context(), opts, "admin", bson.D{{Key: "hello", Value: 1}}, &into)
			runtime.ReadMemStats(&after)
			if name != "deep documents" {
				require.Error(t, err)
				require.NotContains(t, err.Error(), "\n")
			}
			require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(64<<20))
		})
	}
}

// FuzzAnswer is a server that says anything.
func FuzzAnswer(f *testing.F) {
	f.Add([]byte("\xff\xff\xff\x7f\x00\x00\x00\x00"))
	f.Add([]byte("\x10\x00\x00\x00............\x10\x00"))
	f.Add([]byte("HTTP/1.1 400"))
	f.Fuzz(func(t *testing.T, said []byte) {
		near, far := net.Pipe()
		go func() {
			_, _ = far.Write(said)
			_ = far.Close()
		}()
		c := &boundedConn{Conn: near}
		got, _ := io.ReadAll(c)
		require.LessOrEqual(t, len(got), maxAnswer)
		// What was let through are messages of a length that may be, and part of one.
		for rest := got; len(rest) >= 4; {
			size := int(binary.LittleEndian.Uint32(rest))
			require.True(t, size >= 16 && size <= maxAnswer, "%d", size)
			rest = rest[min(size, len(rest)):]
		}
		_ = near.Close()
	})
}
