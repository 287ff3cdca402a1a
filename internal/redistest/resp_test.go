package redistest

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// replies is one of each type, and some nested ones.
var replies = []string{
	"+OK\r\n", "-ERR no\r\n", ":1\r\n", "_\r\n", "#t\r\n", ",1.5\r\n", "(123\r\n",
	"$-1\r\n", "$0\r\n\r\n", "$4\r\na\r\nb\r\n", "=7\r\ntxt:abc\r\n", "!3\r\nERR\r\n",
	"*-1\r\n", "*0\r\n", "*2\r\n*1\r\n$1\r\nx\r\n:2\r\n",
	"%1\r\n+a\r\n*2\r\n:1\r\n:2\r\n", "~1\r\n:1\r\n",
	">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\np\r\n", "|1\r\n+k\r\n+v\r\n:1\r\n",
}

func TestReplyLenFindsTheBorder(t *testing.T) {
	t.Parallel()
	for _, reply := range replies {
		n, err := replyLen([]byte(reply + "+next\r\n"))
		require.NoError(t, err, "%q", reply)
		require.Equal(t, len(reply), n, "%q", reply)
		for cut := range len(reply) {
			n, err := replyLen([]byte(reply[:cut]))
			require.NoError(t, err, "%q", reply[:cut])
			require.Zero(t, n, "%q", reply[:cut])
		}
	}
}

func TestNotRESP(t *testing.T) {
	t.Parallel()
	for _, bytes := range []string{"PING\r\n", "\x16\x03\x01\x02\x00\x01", "\r\n", "$4\r\nPING\r\n"} {
		_, err := requestLen([]byte(bytes))
		require.ErrorIs(t, err, errNotRESP, "%q", bytes)
	}
}

func TestMatch(t *testing.T) {
	t.Parallel()
	create := []byte("*4\r\n$6\r\nXGROUP\r\n$6\r\nCREATE\r\n$3\r\nkey\r\n$1\r\ng\r\n")
	script := []byte("*3\r\n$10\r\nEVALSHA_RO\r\n$2\r\nab\r\n$1\r\n0\r\n")
	require.True(t, Command("xgroup")(create))
	require.True(t, Command("XGROUP CREATE")(create))
	require.False(t, Command("XGROUP DESTROY")(create))
	require.False(t, Command("XADD")(create))
	require.False(t, Command("evalsha_ro ab 0 more")(script))
	require.True(t, Script()(script))
	require.False(t, Script()(create))
	require.True(t, And(Any(), Contains("key"))(create))
	require.False(t, And(Any(), Contains("other"))(create))
	require.False(t, NotNil([]byte("_\r\n")))
	require.True(t, NotNil([]byte("*0\r\n")))
}

// FuzzReplyLen feeds what a broken server could send: it is found incomplete, found not to be
// RESP, or has a border inside of the bytes that does not depend on what follows.
func FuzzReplyLen(f *testing.F) {
	for _, reply := range replies {
		f.Add([]byte(reply))
	}
	f.Add([]byte("$9223372036854775807\r\n"))
	f.Add([]byte("%4611686018427387904\r\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		n, err := replyLen(data)
		require.LessOrEqual(t, n, len(data))
		if err == nil && n > 0 {
			again, err := replyLen(data[:n])
			require.NoError(t, err)
			require.Equal(t, n, again)
		}
		requestWords(data, 3)
	})
}
