package redischannels

import (
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
)

// As many events as may wait for a slow OnEvent do; who has one more waits until there is
// room. All are told, in their order, before close returns.
func TestReporterIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = 3
		var told []int
		release := make(chan struct{})
		r := newReporter(func(e Event) {
			<-release
			told = append(told, e.Count)
		}, limit)
		posted := 0
		done := make(chan struct{})
		go func() {
			defer close(done)
			for n := range 3 * limit {
				r.post(Event{Kind: EventError, Count: n})
				posted++
			}
		}()
		synctest.Wait()
		require.GreaterOrEqual(t, posted, limit)
		require.LessOrEqual(t, posted, 2*limit, "those that are being told and those that wait")
		close(release)
		<-done
		r.close()
		require.Equal(t, []int{0, 1, 2, 3, 4, 5, 6, 7, 8}, told)
	})
}
