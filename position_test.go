package redischannels

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/stream"
)

func TestPosition_Text(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]Position{
		"":                    "",
		"oldest":              Oldest,
		"latest":              Latest,
		"after:5":             AfterID("5-0"),
		"after:05-1":          AfterID("5-1"),
		"after:0-0":           Oldest,
		"since:1700000000000": Since(time.UnixMilli(1700000000000)),
	} {
		got, err := ParsePosition(text)
		require.NoError(t, err, text)
		require.Equal(t, want, got, text)
		again, err := ParsePosition(string(got))
		require.NoError(t, err)
		require.Equal(t, got, again)
	}
	require.Equal(t, Oldest, Since(time.Time{}))
	data, err := json.Marshal(map[Position]Position{Oldest: AfterID("7-1")})
	require.NoError(t, err)
	require.JSONEq(t, `{"oldest":"after:7-1"}`, string(data))
}

func TestPosition_InvalidTextIsReported(t *testing.T) {
	t.Parallel()
	for text, want := range map[Position]string{
		AfterID("abc"):  `must be an entry ID such as 1700000000000-0, got "abc"`,
		AfterID(""):     `must be an entry ID such as 1700000000000-0, got ""`,
		AfterID("1-2-"): `got "1-2-"`,
		"since:now":     `must be since: with Unix milliseconds such as since:1700000000000, got "since:now"`,
		"since:-1":      `got "since:-1"`,
		"newest":        `must be "oldest", "latest", "after:" with an entry ID, or "since:" with Unix milliseconds, got "newest"`,
		"5-0":           `got "5-0"`,
		"Latest":        `got "Latest"`,
	} {
		_, err := ParsePosition(string(text))
		require.ErrorIs(t, err, ErrInvalidArgument)
		require.ErrorContains(t, err, want)
		err = SubscriberConfig{StartFrom: text}.Validate()
		require.ErrorIs(t, err, ErrInvalidConfig)
		require.ErrorContains(t, err, "SubscriberConfig.StartFrom: invalid configuration: must be ")
		require.ErrorContains(t, err, want)
	}
}

func TestPosition_GroupStart(t *testing.T) {
	t.Parallel()
	for p, want := range map[Position]string{
		Oldest:         "0-0",
		Latest:         "$",
		AfterID("5-7"): "5-7",
		AfterID("5"):   "5-0",
		"after:5":      "5-0",
		"since:5":      stream.ID{Ms: 5}.Prev().String(),
		"since:0":      "0-0",
	} {
		require.Equal(t, want, p.groupStart(), p)
	}
}
