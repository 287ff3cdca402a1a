package stream

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestParseID(t *testing.T) {
	const greatest = "18446744073709551615-18446744073709551615"
	for text, want := range map[string]ID{
		"0-0": {}, "5": {Ms: 5}, "5-0": {Ms: 5}, "1700000000000-12": {Ms: 1700000000000, Seq: 12},
		greatest: {Ms: math.MaxUint64, Seq: math.MaxUint64},
	} {
		id, err := ParseID(text)
		require.NoError(t, err, text)
		require.Equal(t, want, id, text)
	}
	for _, text := range []string{
		"", "-", "-1", "1-", "a-1", "1-a", "1-2-3", " 1-1", "1-1 ", "+1-1", "1_0-1", "0x1-1",
		"18446744073709551616-0", "0-18446744073709551616", "$", ">", "*", "1-*",
	} {
		_, err := ParseID(text)
		require.Error(t, err, "%q", text)
	}
}

// Reading "after" an ID by adding one to its milliseconds skips entries, and the ends of the
// range must not wrap around.
func TestIDBorders(t *testing.T) {
	greatest := ID{Ms: math.MaxUint64, Seq: math.MaxUint64}
	require.Equal(t, ID{}, ID{}.Prev())
	require.Equal(t, greatest, greatest.Next())
	require.Equal(t, ID{Seq: 1}, ID{}.Next())
	require.Equal(t, ID{Ms: 1, Seq: 1}, ID{Ms: 1}.Next())
	require.Equal(t, ID{Ms: 2}, ID{Ms: 1, Seq: math.MaxUint64}.Next())
	require.Equal(t, ID{Ms: 1, Seq: math.MaxUint64}, ID{Ms: 2}.Prev())
}

func drawID(t *rapid.T, label string) ID {
	part := rapid.OneOf(rapid.Uint64(), rapid.SampledFrom([]uint64{0, 1, 9, 10, math.MaxUint64 - 1, math.MaxUint64}))
	return ID{Ms: part.Draw(t, label+" ms"), Seq: part.Draw(t, label+" seq")}
}

func TestIDProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := drawID(t, "a"), drawID(t, "b")
		parsed, err := ParseID(a.String())
		require.NoError(t, err)
		require.Equal(t, a, parsed)
		fromReply, err := parseIDBytes([]byte(a.String()))
		require.NoError(t, err)
		require.Equal(t, a, fromReply)
		require.Equal(t, len(a.String()), idLen(a))

		require.Equal(t, a.Compare(b), -b.Compare(a))
		require.Equal(t, a == b, a.Compare(b) == 0)
		require.Equal(t, a.Less(b), a.Compare(b) < 0)
		if a.Less(b) {
			require.False(t, b.Less(a.Next()), "nothing lies between an ID and its next")
			require.False(t, b.Prev().Less(a))
			require.Equal(t, a, a.Next().Prev())
			require.Equal(t, b, b.Prev().Next())
		}
	})
}
