package stream

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/redisconn"
)

// resp writes the words as RESP; a word that begins with one of *%~|_ stands for itself.
func resp(words ...string) string {
	var b strings.Builder
	for _, w := range words {
		if w != "" && strings.ContainsRune("*%~|_,#:+", rune(w[0])) {
			b.WriteString(w + "\r\n")
		} else {
			fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(w), w)
		}
	}
	return b.String()
}

// fieldsOf collects the fields of an entry.
func fieldsOf(e *Entry) []string {
	var flat []string
	e.Fields(func(name, value []byte) { flat = append(flat, string(name), string(value)) })
	return flat
}

func TestParseReply(t *testing.T) {
	two := []string{"*2", "*2", "1-0", "*4", "a", "1", "a", "", "*2", "18446744073709551615-18446744073709551615", "*2", "b", "x\r\ny"}
	for name, raw := range map[string]string{
		"RESP2":             resp(append([]string{"*1", "*2", "key"}, two...)...),
		"RESP3":             resp(append([]string{"%1", "key"}, two...)...),
		"attributes":        resp(append([]string{"|1", "ttl", ":5", "%1", "key"}, two...)...),
		"attributes inside": resp(append([]string{"%1", "|1", "a", "*2", "b", "%1", "c", "~1", "d", "key", "|0"}, two...)...),
		"attributes of any type": resp("|5", "a", ",1.5", "b", "#t", "c") + "(12345678901234567890\r\n" + resp("d") + "=7\r\ntxt:abc\r\n" + resp("e") + "!3\r\nERR\r\n" +
			resp(append([]string{"|0", "*1", "*2", "key"}, two...)...),
	} {
		t.Run(name, func(t *testing.T) {
			entries, err := parseOne([]byte(raw))
			require.NoError(t, err)
			require.Len(t, entries, 2)
			require.Equal(t, ID{Ms: 1}, entries[0].ID)
			require.Equal(t, "1-0", entries[0].Text)
			require.Equal(t, []string{"a", "1", "a", ""}, fieldsOf(&entries[0]))
			require.Equal(t, 3, entries[0].Size)
			require.Equal(t, "18446744073709551615-18446744073709551615", entries[1].Text)
			require.Equal(t, []string{"b", "x\r\ny"}, fieldsOf(&entries[1]))
		})
	}
}

func TestParseReplyWithoutEntries(t *testing.T) {
	for _, raw := range []string{"*-1\r\n", "_\r\n", "$-1\r\n", "*0\r\n", "%0\r\n", "|1\r\n$1\r\na\r\n:1\r\n_\r\n", resp("*1", "*2", "key", "*0")} {
		entries, err := parseOne([]byte(raw))
		require.NoError(t, err, "%q", raw)
		require.Empty(t, entries, "%q", raw)
	}
	// A nil in place of the fields is an entry that was trimmed; the others keep their IDs.
	entries, err := parseOne([]byte(resp("*1", "*2", "key", "*3", "*2", "100-1", "*2", "a", "1", "*2", "20-22", "_", "*2", "3-3", "*0")))
	require.NoError(t, err)
	require.Len(t, entries, 2)
	require.Equal(t, "100-1", entries[0].Text)
	require.Equal(t, "3-3", entries[1].Text)
	require.Empty(t, fieldsOf(&entries[1]))
	entries, err = parseOne([]byte(resp("*1", "*2", "key", "*1", "*2", "20-22") + "*-1\r\n"))
	require.NoError(t, err)
	require.Empty(t, entries)
}

func TestParseReplyOfAnError(t *testing.T) {
	_, err := parseOne([]byte("-NOGROUP No such key\r\n"))
	require.Equal(t, redisconn.ReplyError("NOGROUP No such key"), err)
	require.Equal(t, redisconn.KindNoGroup, redisconn.Classify(err))
	var reply redis.Error
	require.ErrorAs(t, err, &reply)
	_, err = parseOne([]byte("-UNBLOCKED the stream key no longer exists\r\n"))
	require.Equal(t, redisconn.KindNoGroup, redisconn.Classify(err))
	_, err = parseOne([]byte("!10\r\nERR a b\r\nc\r\n"))
	require.Error(t, err)
}

func parseOne(raw []byte) ([]Entry, error) { return entriesOf(parseReply(raw, nil)) }

// A reply over several streams has a page for each that had entries.
func TestParseReplyOfStreams(t *testing.T) {
	a := []string{"*1", "*2", "1-0", "*2", "n", "v"}
	b := []string{"*2", "*2", "2-0", "*2", "n", "w", "*2", "3-0", "*0"}
	resp2 := resp(append(append(append([]string{"*2", "*2", "a"}, a...), "*2", "b"), b...)...)
	resp3 := resp(append(append(append([]string{"%2", "a"}, a...), "b"), b...)...)
	for _, raw := range []string{resp2, resp3} {
		pages, err := parseReply([]byte(raw), nil)
		require.NoError(t, err)
		require.Len(t, pages, 2)
		require.Equal(t, "a", pages[0].Key)
		require.Equal(t, []string{"n", "v"}, fieldsOf(&pages[0].Entries[0]))
		require.Equal(t, "b", pages[1].Key)
		require.Equal(t, "3-0", pages[1].Entries[1].Text)
		_, err = parseOne([]byte(raw))
		require.Error(t, err, "one was asked for")
	}
}

// Whatever bytes come, the parser answers with an error, neither with a panic nor with entries
// that are not there.
func TestParseReplyOfHostileBytes(t *testing.T) {
	whole := resp("*1", "*2", "key", "*1", "*2", "1-0", "*2", "name", "value")
	_, err := parseOne([]byte(whole))
	require.NoError(t, err)
	for i := range len(whole) {
		_, err := parseOne([]byte(whole[:i]))
		require.Error(t, err, "the first %d bytes", i)
	}
	for _, raw := range []string{
		"", "\r\n", "\n", "*\r\n", "*1\n", "*x\r\n", "*--1\r\n", "*1\r\n", "?\r\n", "+OK\r\n", ":1\r\n", "$3\r\nabc\r\n",
		resp("*1", "*3", "key", "*0", "*0"),
		resp("*1", "*2", "key", "*1", "*3", "1-0", "*0", "*0"),
		resp("*1", "*2", "key", "*1", "*2", "1-0", "*1", "odd"),
		resp("*1", "*2", "key", "*1", "*2", "no ID", "*0"),
		resp("*1", "*2", "key", "*1", "*2", "01-1", "*0"), // not as Redis writes it
		resp("*1", "*2", "key", "*1", "*2", "1-18446744073709551616", "*0"),
		resp("*1", "*2", "key", "*1", "*2", "1-0", "*2", "name", ":1"),
		"*1\r\n*2\r\n$9223372036854775807\r\n",
		"*1\r\n*2\r\n$-18446744073709551615\r\n",
		resp("*1", "*2", "key") + "*1099511627776\r\n",
		resp("*1", "*2", "key") + "*9223372036854775807\r\n",
		resp("*1", "*2", "key") + "*-9223372036854775803\r\n" + resp("*2", "1-0", "*0"),
		resp("*1", "*2", "key", "*1", "*2", "1-0") + "*1099511627776\r\n",
		"|1099511627776\r\n", "%1099511627776\r\n",
		"|1\r\n" + strings.Repeat("*1\r\n", 1_000_000),
		strings.Repeat("|0\r\n", 1_000_000),
	} {
		entries, err := parseOne([]byte(raw))
		require.Error(t, err, "%.60q", raw)
		require.Empty(t, entries, "%.60q", raw)
	}
}

// A reply that is nested without end would end the process: a stack that overflows cannot be
// recovered from.
func TestParseReplyNestsWithBounds(t *testing.T) {
	nested := func(depth int) []byte {
		return []byte("|1\r\n+k\r\n" + strings.Repeat("*1\r\n", depth) + ":1\r\n" + resp("*1", "*2", "key", "*1", "*2", "1-0", "*0"))
	}
	entries, err := parseOne(nested(20))
	require.NoError(t, err)
	require.Len(t, entries, 1)
	_, err = parseOne(nested(1000))
	require.Error(t, err)
}

// The fields of an entry are passed without a check of their own: what parseReply accepted
// must be readable, also after Detach.
func TestEntryDetachAndRelease(t *testing.T) {
	raw := []byte(resp("*1", "*2", "key", "*1", "*2", "1-0", "*2", "name", "value"))
	entries, err := parseOne(raw)
	require.NoError(t, err)
	e := entries[0]
	e.Detach()
	clear(raw)
	require.Equal(t, []string{"name", "value"}, fieldsOf(&e))
	e.Release()
	require.Empty(t, fieldsOf(&e))
	made := NewEntry(ID{Ms: 1, Seq: 2}, []string{"a", "bc"})
	made.Detach()
	require.Equal(t, "1-2", made.Text)
	require.Equal(t, 3, made.Size)
	require.Equal(t, []string{"a", "bc"}, fieldsOf(&made))
}

func FuzzParseReply(f *testing.F) {
	for _, seed := range []string{
		resp("*1", "*2", "key", "*1", "*2", "1-0", "*2", "name", "value"),
		resp("%1", "key", "*2", "*2", "1-0", "*2", "name", "value", "*2", "2-0", "_"),
		resp("|1", "a", "*1", "%1", "b", "c", "*1", "*2", "key", "*0"),
		"*-1\r\n", "_\r\n", "-ERR x\r\n", "!3\r\nabc\r\n", "*1\r\n*2\r\n$-18446744073709551615\r\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		before := bytes.Clone(raw)
		entries, err := parseOne(raw)
		if err != nil && len(entries) > 0 {
			t.Fatal("entries and an error")
		}
		for i := range entries {
			e := &entries[i]
			n, size := 0, 0
			e.Fields(func(name, value []byte) {
				n++
				size += len(name) + len(value)
			})
			if size != e.Size {
				t.Fatalf("fields of %d bytes, Size %d", size, e.Size)
			}
			if id, err := ParseID(e.Text); err != nil || id != e.ID {
				t.Fatalf("ID %v has the text %q", e.ID, e.Text)
			}
		}
		if !bytes.Equal(before, raw) {
			t.Fatal("the reply was changed")
		}
	})
}
