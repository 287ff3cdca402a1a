package eventqueue

import (
	"context"
	"errors"
	"strconv"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/lifecycle/lifecycletest"
	"github.com/flaminco/redischannels/internal/redistest"
)

func TestMain(m *testing.M) { redistest.Main(m) }

type event struct {
	subject string
	count   int
	lasted  time.Duration
	err     error
}

func merge(older, newer event) event {
	newer.count += older.count
	newer.lasted += older.lasted
	return newer
}

const grace = 5 * time.Second

// recorder is a queue whose Deliver waits for release.
type recorder struct {
	*Queue[string, event]
	release              chan struct{}
	delivered, abandoned []event
	abandonments         int
}

func newRecorder(limit int, merging bool) *recorder {
	r := &recorder{release: make(chan struct{})}
	r.Queue = New(Config[string, event]{
		Deliver: func(e event) {
			<-r.release
			r.delivered = append(r.delivered, e)
		},
		Abandon: func(events []event) {
			r.abandonments++
			r.abandoned = append(r.abandoned, events...)
		},
		Limit: limit, Merging: merging,
		Subject:  func(e event) string { return e.subject },
		Merge:    merge,
		Interval: time.Second, Grace: grace,
	})
	return r
}

func counts(events []event) (counts []int) {
	for _, e := range events {
		counts = append(counts, e.count)
	}
	return counts
}

// As many events as may wait for a slow function do; Post waits with one more. All are
// delivered, in their order, before Close returns.
func TestQueue_IsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = 3
		r := newRecorder(limit, false)
		posted := 0
		done := make(chan struct{})
		go func() {
			defer close(done)
			for n := range 3 * limit {
				r.Post(event{count: n})
				posted++
			}
		}()
		synctest.Wait()
		require.GreaterOrEqual(t, posted, limit)
		require.LessOrEqual(t, posted, 2*limit, "those that are being delivered and those that wait")
		close(r.release)
		<-done
		r.Close()
		require.Equal(t, []int{0, 1, 2, 3, 4, 5, 6, 7, 8}, counts(r.delivered))
		require.Zero(t, r.abandonments)
	})
}

// Events of Pub/Sub waited without a bound for an OnEvent that did not return: its connection
// must not wait. Now each subject has at most one event beyond the limit, merged from all, in the
// place of the latest.
func TestQueue_Merges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit, topics, outages = 10, 3, 1000
		r := newRecorder(limit, true)
		latest := errors.New("the latest")
		for range outages {
			r.Post(event{subject: "down", count: 1, err: latest})
			for n := range topics {
				r.Post(event{subject: strconv.Itoa(n), count: 1, lasted: time.Second})
			}
			r.Post(event{subject: "up", count: 1, lasted: time.Second})
			synctest.Wait()
		}
		r.Post(event{subject: "down", count: 1, err: latest})
		r.mu.Lock()
		waiting := r.events.Len()
		r.mu.Unlock()
		require.LessOrEqual(t, waiting, limit+topics+2)
		close(r.release)
		r.Close()
		counts, lasted := map[string]int{}, map[string]time.Duration{}
		for _, e := range r.delivered {
			counts[e.subject] += e.count
			lasted[e.subject] += e.lasted
		}
		require.Equal(t, map[string]int{"down": outages + 1, "up": outages, "0": outages, "1": outages, "2": outages}, counts)
		require.Equal(t, outages*time.Second, lasted["1"])
		last := r.delivered[len(r.delivered)-1]
		require.Equal(t, "down", last.subject, "as it is now")
		require.Equal(t, latest, last.err)
	})
}

// Subscriptions that came and went left a tally each for an OnEvent that did not return.
func TestQueue_TalliesBySubject(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRecorder(1, true)
		for range 1000 {
			r.Tally(event{subject: "topic", count: 2})
			r.Tally(event{subject: "topic", count: 1})
			synctest.Wait()
		}
		r.mu.Lock()
		waiting := r.tallies.Len()
		r.mu.Unlock()
		require.Equal(t, 1, waiting)
		close(r.release)
		r.Close()
		count := 0
		for _, e := range r.delivered {
			count += e.count
		}
		require.Equal(t, 3000, count)
	})
}

// A flood of what happens is one event per interval and subject; the first comes at once, the
// last with Close. Subjects of which there is nothing new are forgotten, and no goroutine runs
// for them.
func TestQueue_TalliesPerInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRecorder(10, true)
		close(r.release)
		r.Tally(event{subject: "other", count: 1})
		for range 35 {
			r.Tally(event{subject: "flood", count: 1})
			synctest.Wait()
			time.Sleep(110 * time.Millisecond)
		}
		require.Equal(t, []int{1, 1, 9, 9, 9}, counts(r.delivered))
		r.Close()
		require.Equal(t, []int{1, 1, 9, 9, 9, 7}, counts(r.delivered))
		require.Nil(t, r.running)

		idle := newRecorder(10, true)
		close(idle.release)
		idle.Tally(event{subject: "one"})
		synctest.Wait()
		require.Nil(t, idle.running)
		time.Sleep(time.Second)
		idle.Tally(event{subject: "two"})
		synctest.Wait()
		require.Len(t, idle.tallyOf, 1)
		idle.Close()
	})
}

// Close waited for an OnEvent that did not return. Now it abandons what is left after Grace,
// in its order, tallies too, and what comes later.
func TestQueue_CloseIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRecorder(10, false)
		for n := range 3 {
			r.Post(event{count: n})
		}
		synctest.Wait()
		r.Tally(event{subject: "tally", count: 3})
		start := time.Now()
		for range 2 {
			r.Close()
			require.Equal(t, grace, time.Since(start))
		}
		require.Equal(t, []int{1, 2, 3}, counts(r.abandoned))
		require.Equal(t, 1, r.abandonments)
		r.Post(event{count: 4})
		r.Tally(event{count: 5})
		r.PostAndWait(event{count: 6})
		require.Equal(t, []int{1, 2, 3, 4, 5, 6}, counts(r.abandoned))
		close(r.release)
		synctest.Wait()
		require.Equal(t, []int{0}, counts(r.delivered))
	})
}

// The call that is under way is waited for as long, and reported, when nothing else is left.
func TestQueue_CloseReportsTheLastCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRecorder(10, false)
		r.Post(event{})
		synctest.Wait()
		r.Close()
		require.Equal(t, 1, r.abandonments)
		require.Empty(t, r.abandoned)
		close(r.release)
	})
}

// A goroutine that waits for room with its event would delay the end of what it belongs to.
func TestQueue_EndLetsPostGoOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRecorder(1, false)
		posted := make(chan struct{})
		go func() {
			defer close(posted)
			for n := range 10 {
				r.Post(event{count: n})
			}
		}()
		synctest.Wait()
		select {
		case <-posted:
			require.Fail(t, "beyond the limit Post waits")
		default:
		}
		r.End()
		<-posted
		close(r.release)
		r.Close()
		require.Equal(t, []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, counts(r.delivered))
	})
}

// PostAndWait returns when its event was delivered, merged ones too, or at the end.
func TestQueue_PostAndWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRecorder(1, true)
		var returned atomic.Int32
		for n := range 4 {
			go func() {
				r.PostAndWait(event{count: n})
				returned.Add(1)
			}()
			synctest.Wait()
		}
		require.Zero(t, returned.Load())
		r.release <- struct{}{}
		synctest.Wait()
		require.EqualValues(t, 1, returned.Load())
		r.release <- struct{}{}
		synctest.Wait()
		require.EqualValues(t, 4, returned.Load())
		require.Equal(t, []int{0, 6}, counts(r.delivered))
		go func() {
			r.PostAndWait(event{})
			returned.Add(1)
		}()
		synctest.Wait()
		r.End()
		synctest.Wait()
		require.EqualValues(t, 5, returned.Load())
		close(r.release)
		r.Close()
	})
}

func TestQueue_CloseStress(t *testing.T) {
	closed := errors.New("abandoned")
	lifecycletest.Stress(t, closed, func() lifecycletest.Subject {
		type event struct{ abandoned atomic.Bool }
		q := New(Config[int, *event]{
			Deliver: func(*event) {},
			Abandon: func(events []*event) {
				for _, e := range events {
					e.abandoned.Store(true)
				}
			},
			Limit:   2,
			Subject: func(*event) int { return 0 },
			Grace:   grace,
		})
		return lifecycletest.Subject{
			Call: func(context.Context) error {
				e := new(event)
				if q.PostAndWait(e); e.abandoned.Load() {
					return closed
				}
				return nil
			},
			Close: func() error { q.Close(); return nil },
		}
	})
}
