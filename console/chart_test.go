package console

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/inspect"
	"github.com/flaminco/redischannels/internal/redistest"
)

func TestMain(m *testing.M) { redistest.Main(m) }

func TestChart(t *testing.T) {
	t.Parallel()
	now := time.Now()
	empty := newChart("Lag", "entries", nil, now)
	require.Equal(t, chart{Name: "Lag", Unit: "entries", Now: "–", Highest: "–", Span: "5m"}, empty)
	one := newChart("Lag", "entries", []point{{now, 12}}, now)
	require.Equal(t, chart{Name: "Lag", Unit: "entries", Now: "12", Highest: "12", Span: "5m"}, one)
	c := newChart("Lag", "entries", []point{{now.Add(-10 * time.Minute), 0}, {now.Add(-5 * time.Minute), 2000}, {now, 1000}}, now)
	require.Equal(t, "0.0,99.0 300.0,6.0 600.0,52.5", c.Line, "from left to right, the highest above")
	require.Equal(t, "M0.0,100 L0.0,99.0 L300.0,6.0 L600.0,52.5 L600.0,100 Z", c.Area)
	require.Equal(t, []string{"1k", "2k", "10m"}, []string{c.Now, c.Highest, c.Span})
	flat := newChart("Lag", "entries", []point{{now.Add(-time.Minute), 0}, {now, 0}}, now)
	require.Equal(t, "480.0,99.0 600.0,99.0", flat.Line, "a line at the bottom, and no division by zero")
}

func TestWords(t *testing.T) {
	t.Parallel()
	for value, want := range map[float64]string{0: "0", 0.25: "0.2", 12.34: "12.3", 999: "999", 1000: "1k", 1234: "1.2k", 123456: "123k", 5e6: "5M", 2e12: "2000G"} {
		require.Equal(t, want, short(value))
	}
	for d, want := range map[time.Duration]string{
		-1: "–", 1234 * time.Microsecond: "1ms", 90 * time.Second: "1m 30s", time.Hour: "1h", 49*time.Hour + time.Minute: "2d 1h", 59*time.Second + 600*time.Millisecond: "1m0s",
	} {
		require.Equal(t, want, age(d))
	}
	for n, want := range map[int64]string{0: "0", 999: "999", 1000: "1\u202f000", -1234567: "-1\u202f234\u202f567"} {
		require.Equal(t, want, number(n))
	}
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1536: "1.5 KiB", 5 << 30: "5.0 GiB", 1 << 60: "1048576.0 TiB"} {
		require.Equal(t, want, size(n))
	}
	require.Equal(t, "/p/topics/a%2Fb%3Fc%23%22", link("/p", "topics", `a/b?c#"`))
	require.Equal(t, `*a\*b\?\[c\]\\*`, containing(`a*b?[c]\`))
}

// Samples are kept for an hour, and those of a group that does not exist any more are forgotten.
func TestSampler_Keeps(t *testing.T) {
	t.Parallel()
	s := &sampler{}
	start := time.Now()
	group := func(name string, at time.Time, added, lag int64) inspect.Group {
		return inspect.Group{Topic: "t", Name: name, At: at, Added: added, Lag: inspect.Count{AtLeast: lag, AtMost: lag}}
	}
	for i := range int64(400) {
		at := start.Add(time.Duration(i) * sampleEvery)
		look := []inspect.Group{group("a", at, 100*i, i)}
		if i < 10 {
			look = append(look, group("b", at, 100*i, 0))
		}
		s.add(map[string][]inspect.Group{"t": look})
	}
	require.Empty(t, s.ofGroup(groupKey{"t", "b"}))
	all := s.ofGroup(groupKey{"t", "a"})
	require.Len(t, all, int(sampleFor/sampleEvery)+1)
	last := all[len(all)-1]
	require.True(t, last.known)
	require.InDelta(t, 10, last.rate.Appended, 0.01)
	require.InDelta(t, 9.9, last.rate.Finished, 0.01)
	require.Equal(t, int64(399), last.lag)
	require.Len(t, s.ofTopic("t"), 1)
	require.Empty(t, s.ofTopic("other"))
}
