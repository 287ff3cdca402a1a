package redisconn

import (
	"bytes"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"
)

func TestAppendCommand(t *testing.T) {
	require.Equal(t, "x*2\r\n$9\r\nSUBSCRIBE\r\n$5\r\na\r\nb \r\n", string(AppendCommand([]byte("x"), "SUBSCRIBE", "a\r\nb ")))
}

// If two readers disagree about the end of a value, everything after it on the connection is
// shifted.
func TestReadersAgree(t *testing.T) {
	values := []string{
		"+OK\r\n", "-ERR x\r\n", ":1\r\n", "_\r\n", ",1.5\r\n", "#t\r\n", "(12345678901234567890\r\n",
		"$0\r\n\r\n", "$-1\r\n", "$4\r\na\r\nb\r\n", "=7\r\ntxt:abc\r\n", "!5\r\nERR x\r\n",
		"*0\r\n", "*-1\r\n", "*2\r\n:1\r\n*1\r\n$1\r\na\r\n", "~1\r\n_\r\n", ">2\r\n+a\r\n+b\r\n",
		"%1\r\n+k\r\n*1\r\n:1\r\n", "|1\r\n+k\r\n:1\r\n$1\r\na\r\n", "*1\r\n|1\r\n+k\r\n%1\r\n+a\r\n+b\r\n:1\r\n",
	}
	for _, value := range values {
		reply := []byte(value + "+next\r\n")
		p := NewParser(reply)
		require.NoError(t, p.Skip(), "%q", value)
		require.Equal(t, value, string(p.Since(0)))

		w := NewWalk()
		for n := range len(value) {
			done, err := w.On(reply[:n])
			require.NoError(t, err, "%q", value)
			require.False(t, done, "%q ends after %d bytes", value, n)
		}
		done, err := w.On(reply)
		require.NoError(t, err)
		require.True(t, done)
		require.Equal(t, len(value), w.Pos, "%q", value)

		d := NewDecoder(iotest.OneByteReader(bytes.NewReader(reply)))
		require.NoError(t, d.Skip(1), "%q", value)
		h, err := d.Header()
		require.NoError(t, err)
		require.Equal(t, "next", string(h.Text), "%q", value)
	}
}

func TestReadersRefuseHostileBytes(t *testing.T) {
	for _, raw := range []string{
		"\r\n", "\n", "+\n", "*1\n", "*\r\n", "*x\r\n", "*--1\r\n", "*-2\r\n", "?\r\n", "HTTP/1.1 200 OK\r\n",
		"$99999999999999999999\r\n", "*99999999999999999999\r\n",
		strings.Repeat("*1\r\n", 10*maxDepth), strings.Repeat("|1\r\n+k\r\n", 2) + "?\r\n",
	} {
		p := NewParser([]byte(raw))
		require.ErrorIs(t, p.Skip(), ErrMalformed, "%.40q", raw)
		require.ErrorIs(t, NewDecoder(strings.NewReader(raw)).Skip(1), ErrMalformed, "%.40q", raw)
	}
	long := "+" + strings.Repeat("x", decoderBuffer) + "\r\n"
	require.ErrorIs(t, NewDecoder(strings.NewReader(long)).Skip(1), ErrMalformed)
	for _, raw := range []string{"$1000000000\r\n", "*1000000\r\n"} {
		require.ErrorIs(t, NewDecoder(strings.NewReader(raw)).Skip(1), ErrMalformed, "it would cost memory or time: %q", raw)
	}
}
