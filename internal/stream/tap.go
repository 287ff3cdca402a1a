package stream

import (
	"bytes"
	"net"
	"slices"
	"syscall"
	"time"

	"github.com/flaminco/redischannels/internal/redisconn"
)

// standIn is what go-redis is given in place of the reply to a read.
const standIn = "+OK\r\n"

// maxLines is what usually comes behind the last large value of a reply.
const maxLines = 4 << 10

// tap is a connection that keeps the replies to XREAD and XREADGROUP to itself: go-redis
// reads a line in their place, and an error as it is. It would take each reply apart into
// strings, one call and one allocation for each, or copy it string by string, which costs
// more than everything else that is done about a message. What is no reply to a read goes
// through.
type tap struct {
	net.Conn
	to *Reader

	reading bool   // a read was sent that is not answered
	due     []byte // what go-redis reads next
}

// tapped returns the connection with a tap. go-redis looks at the socket of a connection
// that was idle, if it can.
func tapped(conn net.Conn, to *Reader) net.Conn {
	t := &tap{Conn: conn, to: to}
	if socket, ok := conn.(syscall.Conn); ok {
		return struct {
			*tap
			syscall.Conn
		}{t, socket}
	}
	return t
}

// Write implements net.Conn.
func (t *tap) Write(p []byte) (int, error) {
	if !isRead(p) {
		return t.Conn.Write(p)
	}
	t.reading, t.to.sent = true, time.Now()
	t.to.setBlocked(true)
	n, err := t.Conn.Write(p)
	if err != nil {
		t.to.setBlocked(false)
	}
	return n, err
}

// isRead reports whether a command reads streams. go-redis sends `*6\r\n$5\r\nXREAD\r\n...`.
func isRead(p []byte) bool {
	_, rest, _ := bytes.Cut(p, []byte("\r\n"))
	return bytes.HasPrefix(rest, []byte("$10\r\nXREADGROUP\r\n")) || bytes.HasPrefix(rest, []byte("$5\r\nXREAD\r\n"))
}

// Read implements net.Conn.
func (t *tap) Read(p []byte) (int, error) {
	if len(t.due) == 0 && t.reading {
		err := t.answer(p)
		t.to.setBlocked(false) // it is answered, or the connection has failed
		if err != nil {
			return 0, err
		}
	}
	if len(t.due) > 0 {
		n := copy(p, t.due)
		t.due = t.due[n:]
		return n, nil
	}
	return t.Conn.Read(p)
}

// answer reads the reply to a read. p is memory that may be used meanwhile; while the
// server blocks there is no other.
func (t *tap) answer(p []byte) error {
	b, own := p[:0:len(p)], false
	var in *chunk
	defer func() { in.release() }()
	for at := redisconn.NewWalk(); ; {
		done, err := at.On(b)
		if err != nil {
			return err
		}
		if done && b[0] == '>' { // a push is for go-redis; the reply comes behind it
			t.due = append(t.due, b[:at.Pos]...)
			b, at = b[at.Pos:], redisconn.NewWalk()
			continue
		}
		if done {
			t.reading = false
			t.take(b[:at.Pos], own, in)
			t.due = append(t.due, b[at.Pos:]...)
			return nil
		}
		switch {
		case len(b) < cap(b):
		case in == nil && max(len(b), at.Need) < chunkSize:
			in, own = newChunk(), false // own is what a push was in
			b = append(in.b[:0], b...)
		default:
			size := max(2*len(b), maxLines)            // nothing is left of what a push has filled
			if at.Need > len(b) && at.Pos < len(b)/2 { // one value is most of it
				size = min(at.Need+maxLines, 4*len(b)) // the length alone takes no memory
			}
			b, own = append(make([]byte, 0, size), b...), true
		}
		n, err := t.Conn.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		if err != nil && n == 0 {
			return err
		}
	}
}

// take hands a reply over to the reader and go-redis what stands in for it. The reply has
// memory of its own, or is in a chunk, or else in what must be released.
func (t *tap) take(reply []byte, own bool, in *chunk) {
	if reply[0] == '-' || reply[0] == '!' {
		t.due = append(t.due, reply...)
		return
	}
	t.due = append(t.due, standIn...)
	switch {
	case own && len(reply) >= cap(reply)/5*4:
		reply = slices.Clip(reply)
	case !own && in != nil && len(reply) >= chunkSize/4:
		t.to.chunk = in.share()
		reply = slices.Clip(reply)
	default:
		reply = slices.Clip(bytes.Clone(reply))
	}
	t.to.reply = reply
}
