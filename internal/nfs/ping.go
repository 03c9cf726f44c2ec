package nfs

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"st2ha/internal/host"
)

// answerTime bounds one conversation with a server.
const answerTime = 3 * time.Second

// Answers says whether the NFS server at address answers, seen from h: an RPC
// NULL call (RFC 5531; program 100003 of RFC 7530). To connect proves nothing,
// for the kernel accepts connections of a server that hangs.
func Answers(ctx context.Context, h host.Host, address string) error {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	conn, err := h.DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	end, _ := ctx.Deadline()
	if err := conn.SetDeadline(end); err != nil {
		return err
	}
	const xid, last = 0x73743268, 1 << 31 // the only fragment of its record
	call := []uint32{last | 40, xid, 0, 2, 100003, 4, 0, 0, 0, 0, 0}
	if err := binary.Write(conn, binary.BigEndian, call); err != nil {
		return err
	}
	reply := make([]uint32, 3) // record mark, xid, message type; a refusal is an answer as well
	err = binary.Read(conn, binary.BigEndian, reply)
	var timeout net.Error
	switch {
	case errors.As(err, &timeout) && timeout.Timeout():
		return fmt.Errorf("no answer within %s", answerTime)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("the connection ended")
	case err != nil:
		return err
	case reply[1] != xid || reply[2] != 1:
		return errors.New("what answers is not an NFS server")
	}
	return nil
}
