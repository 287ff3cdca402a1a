package stream

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/redisconn"
)

// scripted is a connection on which the server sends certain bytes, at most chunk at a time.
type scripted struct {
	net.Conn
	in    *bytes.Reader
	chunk func() int
	out   bytes.Buffer
}

func (c *scripted) Read(p []byte) (int, error) {
	return c.in.Read(p[:min(len(p), max(1, c.chunk()))])
}

func (c *scripted) Write(p []byte) (int, error) { return c.out.Write(p) }

// readAll reads a connection to its end into small memory that is written to in between, as
// a bufio.Reader does.
func readAll(conn net.Conn, size int) (string, error) {
	var all strings.Builder
	p := make([]byte, size)
	for {
		n, err := conn.Read(p)
		all.Write(p[:n])
		clear(p)
		if errors.Is(err, io.EOF) {
			return all.String(), nil
		}
		if err != nil {
			return all.String(), err
		}
	}
}

const readCommand = "*6\r\n$5\r\nXREAD\r\n$5\r\nBLOCK\r\n$1\r\n1\r\n$7\r\nSTREAMS\r\n$1\r\nk\r\n$1\r\n0\r\n"

// Whatever way a reply comes in, it is kept whole, go-redis reads a line in its place, and all
// else as it is.
func TestTap(t *testing.T) {
	push := ">2\r\n" + resp("invalidate", "*1", "key")
	attributes := resp("|1", "a", "*2", "b", "|1", "c", "d", "e")
	entries := resp("*1", "*2", "key", "*2", "*2", "1-0", "*2", "name", "value", "*2", "2-0", "*2", "name", strings.Repeat("long", 100))
	for name, test := range map[string]struct{ server, reply, rest string }{
		"entries":            {server: entries, reply: entries, rest: standIn},
		"RESP3":              {server: resp("%1", "key", "*0"), reply: resp("%1", "key", "*0"), rest: standIn},
		"nothing":            {server: "*-1\r\n", reply: "*-1\r\n", rest: standIn},
		"nothing in RESP3":   {server: "_\r\n", reply: "_\r\n", rest: standIn},
		"an error":           {server: "-NOGROUP gone\r\n", rest: "-NOGROUP gone\r\n"},
		"an error in RESP3":  {server: "!7\r\nERR a b\r\n", rest: "!7\r\nERR a b\r\n"},
		"attributes":         {server: attributes + entries, reply: attributes + entries, rest: standIn},
		"a push before it":   {server: push + push + entries, reply: entries, rest: push + push + standIn},
		"something after it": {server: entries + push + "+PONG\r\n", reply: entries, rest: standIn + push + "+PONG\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, size := range []int{1, 16, 1 << 15} {
				for _, chunk := range []int{1, 7, 64, 1 << 20} {
					var r Reader
					conn := tapped(&scripted{in: bytes.NewReader([]byte(test.server)), chunk: func() int { return chunk }}, &r)
					_, err := conn.Write([]byte(readCommand))
					require.NoError(t, err)
					rest, err := readAll(conn, size)
					require.NoError(t, err)
					require.Equal(t, test.rest, rest, "%d bytes at a time into %d", chunk, size)
					require.Equal(t, test.reply, string(r.reply))
					require.LessOrEqual(t, cap(r.reply), len(r.reply))
				}
			}
		})
	}
}

// Only a read is answered with a stand-in, and only once.
func TestTapOfOtherCommands(t *testing.T) {
	var r Reader
	inner := &scripted{in: bytes.NewReader([]byte("*0\r\n" + "*0\r\n" + "*0\r\n")), chunk: func() int { return 4 }}
	conn := tapped(inner, &r)
	var sent string
	for _, test := range []struct{ command, want string }{
		{resp("*2", "XRANGE", "XREAD"), "*0\r\n"},
		{strings.Replace(readCommand, "$5\r\nXREAD", "$10\r\nXREADGROUP", 1), standIn},
		{resp("*1", "XREADING"), "*0\r\n"},
	} {
		_, err := conn.Write([]byte(test.command))
		require.NoError(t, err)
		sent += test.command
		p := make([]byte, 100)
		n, err := conn.Read(p)
		for n < len(test.want) && err == nil {
			var more int
			more, err = conn.Read(p[n:])
			n += more
		}
		require.NoError(t, err)
		require.Equal(t, test.want, string(p[:n]), test.command)
	}
	require.Equal(t, sent, inner.out.String())
}

// go-redis finds out about a connection that was closed while it was idle by its socket, and
// takes one that pretends to have a socket for broken.
func TestTapOfASocket(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	socket, err := net.Dial("tcp", listener.Addr().String())
	require.NoError(t, err)
	defer socket.Close()
	_, ok := tapped(socket, new(Reader)).(syscall.Conn)
	require.True(t, ok)
	_, ok = tapped(&scripted{}, new(Reader)).(syscall.Conn)
	require.False(t, ok)
}

// A large message takes little more memory than it is long, and none is kept beyond that.
func TestTapOfALargeReply(t *testing.T) {
	for name, payload := range map[string]int{"8 MiB": 8 << 20, "9 MiB": 9 << 20, "100 KiB": 100 << 10} {
		t.Run(name, func(t *testing.T) {
			server := []byte(resp("*1", "*2", "key", "*1", "*2", "1-0", "*4", "n", strings.Repeat("x", payload), "last", "v"))
			var r Reader
			conn := tapped(&scripted{in: bytes.NewReader(server), chunk: func() int { return 1 << 16 }}, &r)
			_, err := conn.Write([]byte(readCommand))
			require.NoError(t, err)
			p := make([]byte, 1<<15)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			n, err := conn.Read(p)
			runtime.ReadMemStats(&after)
			require.NoError(t, err)
			require.Equal(t, standIn, string(p[:n]))
			require.True(t, bytes.Equal(server, r.reply))
			require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(3*len(server)+chunkSize), "about twice, and once for all what is used again")
		})
	}
}

// A connection that ends inside a reply is an error, and no reply.
func TestTapOfAConnectionThatEnds(t *testing.T) {
	whole := resp("*1", "*2", "key", "*1", "*2", "1-0", "*2", "name", "value")
	for i := range len(whole) {
		var r Reader
		conn := tapped(&scripted{in: bytes.NewReader([]byte(whole[:i])), chunk: func() int { return 5 }}, &r)
		_, err := conn.Write([]byte(readCommand))
		require.NoError(t, err)
		n, err := conn.Read(make([]byte, 1000))
		require.ErrorIs(t, err, io.EOF)
		require.Zero(t, n)
		require.Nil(t, r.reply)
	}
}

// A length that a server only claims takes no memory, and bytes that are no reply are an error.
func TestTapOfHostileBytes(t *testing.T) {
	for _, test := range []struct {
		server string
		err    error
	}{
		{"$1000000000000\r\nabc", io.EOF},
		{"*1000000000000\r\n$1\r\na\r\n", io.EOF},
		{strings.Repeat("*1000000000\r\n", 5000), redisconn.ErrMalformed},
		{"*99999999999999999999\r\n", redisconn.ErrMalformed},
		{"?\r\n", redisconn.ErrMalformed},
		{"\r\n", redisconn.ErrMalformed},
	} {
		var r Reader
		conn := tapped(&scripted{in: bytes.NewReader([]byte(test.server)), chunk: func() int { return 1 << 20 }}, &r)
		_, err := conn.Write([]byte(readCommand))
		require.NoError(t, err)
		p := make([]byte, 1<<15)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		n, err := conn.Read(p)
		runtime.ReadMemStats(&after)
		require.ErrorIs(t, err, test.err, "%.40q", test.server)
		require.Zero(t, n)
		require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(1<<20), "%.40q", test.server)
	}
}

// The end that is found while a reply comes in is the one that the parser finds.
func FuzzTap(f *testing.F) {
	f.Add([]byte(resp("*1", "*2", "key", "*1", "*2", "1-0", "*2", "name", "value")), uint64(1))
	f.Add([]byte(resp("|1", "a", "%1", "b", "_", ">2", "c", "#t")+"!3\r\nERR\r\n"), uint64(2))
	f.Add([]byte("-ERR x\r\n"), uint64(3))
	f.Fuzz(func(t *testing.T, server []byte, seed uint64) {
		p := redisconn.NewParser(server)
		want := p.Skip()
		if len(server) > 0 && server[0] == '>' {
			t.Skip("a push")
		}
		random := rand.New(rand.NewPCG(seed, 0))
		var r Reader
		conn := tapped(&scripted{in: bytes.NewReader(server), chunk: func() int { return random.IntN(20) }}, &r)
		_, err := conn.Write([]byte(readCommand))
		require.NoError(t, err)
		rest, err := readAll(conn, 1+random.IntN(50))
		if want != nil {
			if len(server) < 100 { // nor can it be nested any deeper
				require.Nil(t, r.reply, "%v", err)
			}
			return
		}
		require.NoError(t, err)
		if server[0] == '-' || server[0] == '!' {
			require.Equal(t, string(server), rest)
			require.Nil(t, r.reply)
			return
		}
		require.Equal(t, string(server[:p.Pos()]), string(r.reply))
		require.Equal(t, standIn+string(server[p.Pos():]), rest)
	})
}
