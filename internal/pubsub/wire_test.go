package pubsub

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/redisconn"
)

// seen is a push with memory of its own.
func seen(p *push) string {
	return fmt.Sprintf("%d %d %q %q %q %d %s", p.kind, p.of, p.name, p.channel, p.payload, p.size, p.text)
}

func readAll(r io.Reader, limit int) (pushes []string, err error) {
	d := newReader(r, limit)
	for {
		var p push
		if err := d.next(&p); err != nil {
			return pushes, err
		}
		pushes = append(pushes, seen(&p))
	}
}

const wire = "*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n" +
	">3\r\n$10\r\nssubscribe\r\n$1\r\nc\r\n:1\r\n" +
	"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$5\r\nhe\r\no\r\n" +
	">4\r\n$8\r\npmessage\r\n$2\r\nc*\r\n$2\r\nc1\r\n$0\r\n\r\n" +
	">3\r\n$8\r\nsmessage\r\n$1\r\nc\r\n$20\r\n01234567890123456789\r\n" +
	"*2\r\n$4\r\npong\r\n$0\r\n\r\n+PONG\r\n" +
	"-NOPERM no\r\n!5\r\nMOVED\r\n" +
	"*3\r\n$11\r\nunsubscribe\r\n$-1\r\n:0\r\n" +
	">2\r\n$10\r\ninvalidate\r\n*2\r\n$1\r\na\r\n%1\r\n+x\r\n_\r\n" +
	":1\r\n*0\r\n*-1\r\n"

var wirePushes = []string{
	`4 0 "c" "c" "" 0 `, `4 2 "c" "c" "" 0 `,
	`1 0 "c" "c" "he\r\no" 5 `, `2 1 "c*" "c1" "" 0 `, `3 2 "c" "c" "" 20 `,
	`6 0 "" "" "" 0 `, `6 0 "" "" "" 0 `, `7 0 "" "" "" 0 NOPERM no`, `7 0 "" "" "" 0 MOVED`,
	`5 0 "" "" "" 0 `, `0 0 "" "" "" 0 `, `0 0 "" "" "" 0 `, `0 0 "" "" "" 0 `, `0 0 "" "" "" 0 `,
}

func TestReaderKnowsBothProtocols(t *testing.T) {
	for _, r := range []io.Reader{bytes.NewReader([]byte(wire)), iotest.OneByteReader(bytes.NewReader([]byte(wire)))} {
		pushes, err := readAll(r, 10) // a payload of 20 bytes is passed
		require.ErrorIs(t, err, io.EOF)
		require.Equal(t, wirePushes, pushes)
	}
}

func TestReaderRefusesInvalidRESP(t *testing.T) {
	for _, text := range []string{
		"\r\n", "+\n", "HTTP/1.1 200 OK\r\n", "*x\r\n", "*\r\n", "*99999999\r\n", "*3\r\n:1\r\n", "*2\r\n$7\r\nmessage\r\n$1\r\nc\r\n",
		"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\nabc\r\n", "*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$99999999999\r\n",
		"*3\r\n$8\r\npmessage\r\n$1\r\nc\r\n$1\r\nc\r\n", "$999999999999\r\n",
		"*1\r\n*1\r\n", string(bytes.Repeat([]byte("*1\r\n$1\r\nx\r\n*1\r\n"), 3)) + "?",
	} {
		_, err := readAll(bytes.NewReader([]byte(text)), 0)
		require.ErrorIs(t, err, redisconn.ErrMalformed, "%q", text)
	}
}

// Whatever a server sends ends in an error or is read; nothing panics, and no announced
// length costs memory by itself beyond the limit.
func FuzzReader(f *testing.F) {
	f.Add([]byte(wire))
	f.Add([]byte("*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$512\r\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		whole, err1 := readAll(bytes.NewReader(data), 1000)
		bytewise, err2 := readAll(iotest.OneByteReader(bytes.NewReader(data)), 1000)
		if err1 == nil || fmt.Sprint(whole) != fmt.Sprint(bytewise) || errors.Is(err1, redisconn.ErrMalformed) != errors.Is(err2, redisconn.ErrMalformed) {
			t.Fatalf("%v, %v\n%v, %v", whole, err1, bytewise, err2)
		}
	})
}
