package redischannels

import (
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/components/delay"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/delayed"
)

// The time in the metadata has whole seconds: a delay of 2 s that is stamped at x.9 s says 1.1 s.
// A message that is published again has the delay of its first time, which must not count twice.
func TestPublisher_DueOfMetadata(t *testing.T) {
	t.Parallel()
	stamped := time.Date(2026, 5, 1, 12, 0, 0, 900_000_000, time.UTC)
	until := time.Date(2026, 5, 1, 12, 0, 2, 0, time.UTC)
	for name, c := range map[string]struct {
		until, after string
		now          time.Time
		want         delayed.Due
	}{
		"none":                      {"", "2s", stamped, delayed.Due{}},
		"stamped just now":          {until.Format(time.RFC3339), "2s", stamped, delayed.After(2 * time.Second)},
		"the next second has begun": {until.Format(time.RFC3339), "2s", until.Add(-time.Second + 249*time.Millisecond), delayed.After(2 * time.Second)},
		"stamped a while ago":       {until.Format(time.RFC3339), "2s", until.Add(-time.Second + 250*time.Millisecond), delayed.At(until)},
		"less than a second":        {until.Format(time.RFC3339), "500ms", until.Add(749 * time.Millisecond), delayed.After(500 * time.Millisecond)},
		"a second, the last moment": {until.Format(time.RFC3339), "1s", until.Add(-time.Nanosecond), delayed.After(time.Second)},
		"a second, published again": {until.Format(time.RFC3339), "1s", until, delayed.At(until)},
		"published again, past due": {until.Format(time.RFC3339), "2s", until.Add(time.Hour), delayed.At(until)},
		"without the delay":         {until.Format(time.RFC3339), "", stamped, delayed.At(until)},
		"another delay":             {until.Format(time.RFC3339), "1h", stamped, delayed.At(until)},
		"no delay":                  {until.Format(time.RFC3339), "soon", stamped, delayed.At(until)},
		"of another time zone":      {"2026-05-01T14:00:02+02:00", "", stamped, delayed.At(until)},
		"the zero time of Delay{}":  {time.Time{}.Format(time.RFC3339), "0s", stamped, delayed.Due{}},
	} {
		msg := message.NewMessage("u", nil)
		msg.Metadata = message.Metadata{delay.DelayedUntilKey: c.until, delay.DelayedForKey: c.after}
		due, err := dueOf(msg, c.now)
		require.NoError(t, err, name)
		require.Equal(t, c.want, due, name)
	}
	_, err := dueOf(&message.Message{Metadata: message.Metadata{delay.DelayedUntilKey: "tomorrow"}}, stamped)
	require.ErrorIs(t, err, ErrInvalidArgument)
	require.ErrorContains(t, err, `"tomorrow"`)
}
