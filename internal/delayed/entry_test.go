package delayed

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestEntry_RoundTrip(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		values := rapid.SliceOfN(rapid.String(), 1, 20).Draw(t, "names")
		var want []string
		entry := NewEntry(0, 0)
		for i, name := range values {
			value := strings.Repeat(name, i)
			entry = AppendField(entry, name, []byte(value))
			want = append(want, name, value)
		}
		got, err := Unpack(string(entry))
		require.NoError(t, err)
		require.Equal(t, want, got)
	})
}

func FuzzEntry_Unpack(f *testing.F) {
	f.Add("")
	f.Add("\x01\x00\x00\x00\x01a\xff\xff\xff\xffb")
	f.Add(string(AppendField(NewEntry(1, 2), "a", []byte("b"))))
	f.Fuzz(func(t *testing.T, entry string) {
		values, err := Unpack(entry)
		if err != nil {
			return
		}
		again := NewEntry(len(values)/2, 0)
		for i := 0; i < len(values); i += 2 {
			again = AppendField(again, values[i], []byte(values[i+1]))
		}
		require.Equal(t, entry, string(again))
	})
}

// A fraction of a millisecond that is cut off makes a message early.
func TestDue_IsNeverEarly(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 1, 1, 0, 0, 0, 1, time.UTC)
	require.Equal(t, "=1767225600001", At(at).String())
	require.Equal(t, "=1767225600000", At(at.Add(-1)).String())
	require.Equal(t, "+1", After(1).String())
	require.Equal(t, "+1", After(time.Millisecond).String())
	require.Equal(t, "+2", After(time.Millisecond+1).String())
	require.Equal(t, "+9223372036855", After(math.MaxInt64).String())
	for _, due := range []Due{At(time.Time{}), At(time.Unix(0, 0)), After(0), After(-time.Hour)} {
		require.True(t, due.IsZero())
		require.Empty(t, due.String())
	}
}

func TestParseStored(t *testing.T) {
	t.Parallel()
	reply, err := ParseStored("100 150 1 d100-1 e99-0", 2)
	require.NoError(t, err)
	require.Equal(t, StoreReply{Entries: []Stored{{DelayedID: "100-1"}, {EntryID: "99-0"}}, Next: 50 * time.Millisecond, Led: true}, reply)
	reply, err = ParseStored("100 -1 0 e99-0", 1)
	require.NoError(t, err)
	require.Negative(t, reply.Next)
	reply, err = ParseStored("100 9007199254740991 0 d1-1", 1)
	require.NoError(t, err)
	require.Equal(t, maxWait, reply.Next)
	for _, text := range []string{"", "1 2 3", "x 150 1 d1-1", "1 x 1 d1-1", "1 1 1 x1-1", "1 1 1 d1-1 d1-2"} {
		_, err := ParseStored(text, 1)
		require.Error(t, err, text)
	}
}
