package redischannels

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/stream"
)

// Redis 7.0 leaves entries that a group has lost in its counters for ever, later servers count
// them as read: nothing may be reported twice, and nothing not at all.
func TestLosses(t *testing.T) {
	behind := func(lost int64) stream.Standing { return stream.Standing{Lost: lost, LostUntilNow: -1} }
	upToDate := func(lost int64) stream.Standing { return stream.Standing{LostUntilNow: lost} }
	unknown := func(at uint64) stream.Standing {
		return stream.Standing{Lost: -1, LostUntilNow: -1, LastDelivered: stream.ID{Ms: at}}
	}
	for name, steps := range map[string][]struct {
		group stream.Standing
		n     int
		lost  bool
	}{
		"nothing":                         {{upToDate(0), 0, false}, {behind(0), 0, false}, {upToDate(0), 0, false}},
		"before this subscription":        {{upToDate(7), 0, false}, {behind(0), 0, false}, {upToDate(7), 0, false}},
		"while it was away":               {{behind(7), 7, true}, {behind(7), 0, false}, {behind(0), 0, false}, {upToDate(7), 0, false}},
		"more and more":                   {{upToDate(0), 0, false}, {behind(3), 3, true}, {behind(5), 2, true}, {upToDate(5), 0, false}, {behind(6), 1, true}},
		"between two looks":               {{upToDate(2), 0, false}, {upToDate(5), 3, true}, {upToDate(5), 0, false}},
		"later servers":                   {{behind(7), 7, true}, {upToDate(0), 0, false}, {behind(3), 3, true}},
		"later servers, never up to date": {{behind(7), 7, true}, {behind(0), 0, false}, {behind(3), 3, true}},
		"another stream":                  {{upToDate(9), 0, false}, {behind(2), 2, true}, {behind(3), 1, true}, {upToDate(3), 0, false}},
		"an unknown number":               {{unknown(5), 0, true}, {unknown(5), 0, false}, {unknown(6), 0, true}},
	} {
		t.Run(name, func(t *testing.T) {
			var l losses
			for i, step := range steps {
				n, lost := l.see(step.group)
				require.Equal(t, step.lost, lost, "step %d", i)
				if lost {
					require.Equal(t, step.n, n, "step %d", i)
				}
			}
		})
	}
}
