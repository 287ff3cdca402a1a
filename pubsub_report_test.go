package redischannels

import (
	"errors"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

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
		}, limit, false)
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

// What Pub/Sub had to tell waited without bound for an OnEvent that did not return: its
// connection must not wait. Now each subject has one event at most beyond the limit, which
// tells of all, where the latest of them stands.
func TestReporterMerges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit, topics, outages = 10, 3, 1000
		var told []Event
		release := make(chan struct{})
		r := newReporter(func(e Event) {
			<-release
			told = append(told, e)
		}, limit, true)
		latest := errors.New("the latest")
		for range outages {
			r.post(Event{Kind: EventDisconnected, Err: latest})
			for n := range topics {
				r.post(Event{Kind: EventInterrupted, Topic: strconv.Itoa(n), Duration: time.Second})
			}
			r.post(Event{Kind: EventReconnected, Duration: time.Second})
			synctest.Wait()
		}
		r.post(Event{Kind: EventDisconnected, Err: latest})
		r.mu.Lock()
		waiting := r.events.Len()
		r.mu.Unlock()
		require.LessOrEqual(t, waiting, limit+topics+2)
		close(release)
		r.close()
		counts, durations := map[subject]int{}, map[subject]time.Duration{}
		for _, e := range told {
			counts[subject{e.Kind, e.Topic}] += max(e.Count, 1)
			durations[subject{e.Kind, e.Topic}] += e.Duration
		}
		require.Equal(t, map[subject]int{
			{EventDisconnected, ""}: outages + 1, {EventReconnected, ""}: outages,
			{EventInterrupted, "0"}: outages, {EventInterrupted, "1"}: outages, {EventInterrupted, "2"}: outages,
		}, counts)
		require.Equal(t, outages*time.Second, durations[subject{EventInterrupted, "1"}])
		last := told[len(told)-1]
		require.Equal(t, EventDisconnected, last.Kind, "as it is now")
		require.Equal(t, latest, last.Err)
	})
}

// Subscriptions that came and went left a tally each for an OnEvent that did not return.
func TestReporterTalliesTopics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told []Event
		release := make(chan struct{})
		r := newReporter(func(e Event) {
			<-release
			told = append(told, e)
		}, 1, true)
		for range 1000 {
			ended := &tally{subject: subject{EventAbandoned, "topic"}}
			r.count(ended, 2, nil)
			r.count(ended, 1, nil)
			synctest.Wait()
		}
		r.mu.Lock()
		waiting := len(r.tallies)
		r.mu.Unlock()
		require.Equal(t, 1, waiting)
		close(release)
		r.close()
		count := 0
		for _, e := range told {
			count += e.Count
		}
		require.Equal(t, 3000, count)
	})
}
