package schedule

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The ticks on the days on which the clocks of two zones are put forward and back. Where hours are
// given, a tick in the hour that does not exist comes at its end, and one in the hour that comes twice
// comes once. Where every hour is meant, ticks come as time passes.
func TestTimes_ClocksThatAreChanged(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		zone, cron, after string
		want              []string
	}{
		"Berlin, forward, in the gap":           {"Europe/Berlin", "30 2 * * *", "2026-03-28T03:00:00+01:00", []string{"2026-03-29T03:00:00+02:00", "2026-03-30T02:30:00+02:00"}},
		"Berlin, forward, twice in the gap":     {"Europe/Berlin", "0,30 2 * * *", "2026-03-28T03:00:00+01:00", []string{"2026-03-29T03:00:00+02:00", "2026-03-30T02:00:00+02:00"}},
		"Berlin, forward, in and behind it":     {"Europe/Berlin", "0 2,3 * * *", "2026-03-28T03:00:00+01:00", []string{"2026-03-29T03:00:00+02:00", "2026-03-30T02:00:00+02:00"}},
		"Berlin, forward, every half hour":      {"Europe/Berlin", "*/30 * * * *", "2026-03-29T01:15:00+01:00", []string{"2026-03-29T01:30:00+01:00", "2026-03-29T03:00:00+02:00", "2026-03-29T03:30:00+02:00"}},
		"Berlin, back, in the hour twice":       {"Europe/Berlin", "30 2 * * *", "2026-10-24T03:00:00+02:00", []string{"2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00"}},
		"Berlin, back, put between the two":     {"Europe/Berlin", "30 2 * * *", "2026-10-25T02:45:00+02:00", []string{"2026-10-26T02:30:00+01:00"}},
		"Berlin, back, put in the second hour":  {"Europe/Berlin", "30 2 * * *", "2026-10-25T02:15:00+01:00", []string{"2026-10-26T02:30:00+01:00"}},
		"Berlin, back, every half hour":         {"Europe/Berlin", "*/30 * * * *", "2026-10-25T02:15:00+02:00", []string{"2026-10-25T02:30:00+02:00", "2026-10-25T02:00:00+01:00", "2026-10-25T02:30:00+01:00", "2026-10-25T03:00:00+01:00"}},
		"New York, forward, in the gap":         {"America/New_York", "15 2 * * *", "2026-03-07T03:00:00-05:00", []string{"2026-03-08T03:00:00-04:00", "2026-03-09T02:15:00-04:00"}},
		"New York, forward, hourly":             {"America/New_York", "@hourly", "2026-03-08T00:30:00-05:00", []string{"2026-03-08T01:00:00-05:00", "2026-03-08T03:00:00-04:00", "2026-03-08T04:00:00-04:00"}},
		"New York, back, in the hour twice":     {"America/New_York", "15 1 * * *", "2026-10-31T02:00:00-04:00", []string{"2026-11-01T01:15:00-04:00", "2026-11-02T01:15:00-05:00"}},
		"New York, back, hourly":                {"America/New_York", "@hourly", "2026-11-01T00:30:00-04:00", []string{"2026-11-01T01:00:00-04:00", "2026-11-01T01:00:00-05:00", "2026-11-01T02:00:00-05:00"}},
		"New York, back, at the end of the day": {"America/New_York", "@daily", "2026-10-31T12:00:00-04:00", []string{"2026-11-01T00:00:00-04:00", "2026-11-02T00:00:00-05:00"}},
		"half an hour":                          {"Australia/Lord_Howe", "15 2 * * *", "2026-10-03T12:00:00+10:30", []string{"2026-10-04T02:30:00+11:00", "2026-10-05T02:15:00+11:00"}},
		"a day without midnight":                {"America/Santiago", "@daily", "2026-09-05T12:00:00-04:00", []string{"2026-09-06T01:00:00-03:00", "2026-09-07T00:00:00-03:00"}},
		"no change, seconds":                    {"", "*/20 0 9 * * *", "2026-01-01T00:00:00Z", []string{"2026-01-01T09:00:00Z", "2026-01-01T09:00:20Z", "2026-01-01T09:00:40Z", "2026-01-02T09:00:00Z"}},
		"a fixed delay":                         {"Europe/Berlin", "@every 90m", "2026-03-29T01:00:00+01:00", []string{"2026-03-29T03:30:00+02:00", "2026-03-29T05:00:00+02:00"}},
	} {
		times, err := parseTimes(c.cron, c.zone)
		require.NoError(t, err, name)
		at := moment(t, c.after)
		for _, want := range c.want {
			at = times.next(at)
			require.Equal(t, moment(t, want).UTC(), at.UTC(), name)
		}
	}
}

func moment(t *testing.T, text string) time.Time {
	t.Helper()
	at, err := time.Parse(time.RFC3339, text)
	require.NoError(t, err)
	return at
}

func TestTimes_NotOnes(t *testing.T) {
	t.Parallel()
	for _, expression := range []string{"", "x", "* * * *", "60 * * * *", "TZ=Europe/Berlin 0 9 * * *", "CRON_TZ=UTC 0 9 * * *", "TZ=0", "@every x", "@never", "*/0 * * * *"} {
		_, err := parseTimes(expression, "")
		require.ErrorContains(t, err, "Cron: ", expression)
	}
	for _, zone := range []string{"Local", "Berlin", "../etc"} {
		_, err := parseTimes("@daily", zone)
		require.ErrorContains(t, err, "Zone: ", zone)
	}
	never, err := parseTimes("0 0 30 2 *", "")
	require.NoError(t, err)
	require.Zero(t, never.next(time.Now()))
}

// However long a process was away, the latest ticks are found at once.
func TestTimes_Between(t *testing.T) {
	t.Parallel()
	last := moment(t, "2016-01-01T00:00:05Z")
	until := last.AddDate(10, 0, 0).Add(100 * time.Millisecond)
	for expression, c := range map[string]struct {
		n     int
		first time.Duration // before until
	}{
		"@every 7s":   {maxTicks, 693 * time.Second},
		"* * * * * *": {maxTicks, 99 * time.Second},
		"@monthly":    {maxTicks, 0},
		"0 0 1 1 *":   {10, 0},
	} {
		times, err := parseTimes(expression, "")
		require.NoError(t, err)
		ticks := times.between(last, until)
		require.Len(t, ticks, c.n, expression)
		require.True(t, times.next(ticks[c.n-1]).After(until), expression)
		for i, tick := range ticks[1:] {
			require.Equal(t, tick, times.next(ticks[i]), expression)
		}
		if c.first > 0 {
			require.Less(t, until.Sub(ticks[0]), c.first+8*time.Second, expression)
			require.Zero(t, ticks[0].Sub(last)%time.Second)
		}
	}
	every, err := parseTimes("@every 7s", "")
	require.NoError(t, err)
	require.Zero(t, every.between(last, until)[0].Sub(last)%(7*time.Second), "it counts from the last tick")
	require.Empty(t, every.between(last, last.Add(time.Second)))
}

func FuzzTimes(f *testing.F) {
	for _, expression := range []string{"0 9 * * 1-5", "@every 5s", "*/5 * * * * *", "TZ=", "@daily", "1-5/2,7 * L * ?"} {
		f.Add(expression)
	}
	after := time.Date(2026, 3, 29, 0, 30, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, expression string) {
		times, err := parseTimes(expression, "Europe/Berlin")
		if err != nil {
			return
		}
		for at, n := after, 0; n < 20; n++ {
			next := times.next(at)
			if next.IsZero() {
				return
			}
			require.True(t, next.After(at), "%s: %s after %s", expression, next, at)
			at = next
		}
	})
}
