package housekeeper

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/delayed"
	"github.com/flaminco/redischannels/internal/keys"
	"github.com/flaminco/redischannels/internal/retention"
)

// observer reports to channels, and panics.
type observer struct{ failed chan error }

func (observer) DeadLetters(delayed.Target, []delayed.Letter) {}
func (observer) Replaced(keys.Topic, string, string)          {}
func (observer) Pinned(keys.Topic, retention.Pin, int64)      {}
func (o observer) Failed(_ Task, _ delayed.Target, err error) {
	o.failed <- err
	panic("of the application")
}
func (observer) Recovered(Task, delayed.Target, time.Duration) {}

func newObserver() observer { return observer{make(chan error, 1)} }

// away is a client whose server refuses connections.
func away(t *testing.T) *redis.Client {
	t.Helper()
	client := redis.NewClient(&redis.Options{MaxRetries: -1, DialerRetries: 1, Dialer: func(context.Context, string, string) (net.Conn, error) {
		return nil, errors.New("refused")
	}})
	t.Cleanup(func() { _ = client.Close() })
	return client
}

var target = delayed.Target{Topic: keys.Topic{Name: "orders", Base: "{orders}"}}

func TestHousekeeper_OnePerClient(t *testing.T) {
	client, other := away(t), away(t)
	first, second := Open(client, newObserver()), Open(client, newObserver())
	third := Open(other, newObserver())
	require.Same(t, first.keeper, second.keeper)
	require.NotSame(t, first.keeper, third.keeper)
	require.NotEqual(t, first.keeper.name, third.keeper.name)
	second.Due(target, time.Hour)
	require.NoError(t, first.Close())
	require.NoError(t, first.keeper.life.Err(), "another one uses it")
	require.NoError(t, second.Close())
	require.NoError(t, second.Close())
	require.Error(t, second.keeper.life.Err())
	require.NoError(t, third.Close())
	require.Empty(t, all.byClient)
	second.Due(target, 0) // is of no consequence
	require.ErrorIs(t, second.Look(t.Context(), target), errClosed)
	again := Open(client, newObserver())
	require.NotSame(t, first.keeper, again.keeper)
	require.NoError(t, again.Close())
}

// An outage is reported once, when it lasts, and a panic of the observer ends nothing.
func TestHousekeeper_ReportsAnOutageOnce(t *testing.T) {
	t.Parallel()
	o := newObserver()
	h := Open(away(t), o)
	h.Due(target, 0)
	require.ErrorContains(t, <-o.failed, "refused")
	h.Due(target, 0)
	select {
	case err := <-o.failed:
		t.Fatalf("reported again: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	require.NoError(t, h.Close())
}

func TestHousekeeper_PanicInAHookIsAnError(t *testing.T) {
	t.Parallel()
	client := away(t)
	client.AddHook(panicHook{})
	o := newObserver()
	h := Open(client, o)
	require.ErrorContains(t, h.Look(t.Context(), target), "panic")
	h.Due(target, 0)
	require.ErrorContains(t, <-o.failed, "panic")
	require.NoError(t, h.Close())
}

type panicHook struct{ redis.Hook }

func (panicHook) DialHook(next redis.DialHook) redis.DialHook { return next }
func (panicHook) ProcessHook(redis.ProcessHook) redis.ProcessHook {
	return func(context.Context, redis.Cmder) error { panic("of a hook") }
}
func (panicHook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func TestDuty_WhenToLookAgain(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		page delayed.Page
		want time.Duration
		done bool
	}{
		"nothing left":                         {page: delayed.Page{Leads: true, Next: -1}, done: true},
		"more is due":                          {page: delayed.Page{Leads: true}, want: pageInterval},
		"something soon":                       {page: delayed.Page{Leads: true, Next: 30 * time.Millisecond}, want: 30 * time.Millisecond},
		"others may store an earlier one":      {page: delayed.Page{Leads: true, Next: time.Second}, want: leadInterval},
		"it does not lead until then":          {page: delayed.Page{Leads: true, Next: time.Minute}, want: time.Minute},
		"it has moved nothing, no mover leads": {page: delayed.Page{Next: time.Minute}, want: time.Minute},
		"another one leads":                    {page: delayed.Page{Other: true}, want: followInterval},
		"another one, and nothing for a time":  {page: delayed.Page{Other: true, Next: time.Minute}, want: time.Minute + followInterval},
	} {
		after, more := nextMove(c.page)
		require.Equal(t, c.want, after, name)
		require.Equal(t, c.done, !more, name)
	}
}

// News that arrive during a check must not be lost at its end.
func TestDuty_EndsOnlyWhenNothingWasLearnt(t *testing.T) {
	t.Parallel()
	k := &keeper{duties: make(map[dutyKey]*duty)}
	key := dutyKey{Moving, target}
	d := &duty{keeper: k, dutyKey: key, wake: make(chan struct{}, 1)}
	k.duties[key] = d
	d.forward(time.Now().Add(time.Hour))
	require.False(t, d.ends(0, false))
	require.Greater(t, time.Until(d.next), time.Minute)
	d.forward(time.Now())
	require.LessOrEqual(t, time.Until(d.next), pageInterval)
	require.Greater(t, time.Until(d.next), time.Duration(0), "not sooner than the least time between pages")
	d.next = time.Time{} // the check begins
	require.True(t, d.ends(0, false))
	require.Empty(t, k.duties)
}

// A topic is checked often only while something is removed of it.
func TestTrimmer_Intervals(t *testing.T) {
	t.Parallel()
	job := &trimmer{}
	var after []time.Duration
	for _, look := range []retention.Look{
		{}, {Length: 100}, {Length: 30_000, Removed: 9950, More: true}, {Length: 30_000}, {Length: 30_000}, {Length: 30_001}, {Other: true}, {Other: true},
	} {
		after = append(after, job.next(look))
	}
	require.Equal(t, []time.Duration{
		restInterval, trimInterval, pageInterval, trimInterval, restInterval, trimInterval, trimInterval, restInterval,
	}, after)
}

// What pins a stream is reported once, and again when it was something else meanwhile or nothing.
func TestTrimmer_ReportsAPinOnce(t *testing.T) {
	t.Parallel()
	a := retention.Look{Pin: retention.Pin{Kind: retention.PinnedByGroup, Group: "a", For: time.Hour, Stale: true}}
	longer, b, fresh := a, a, a
	longer.Pin.For = 2 * time.Hour
	b.Pin.Group = "b"
	fresh.Pin.Stale = false
	job := &trimmer{keeper: &keeper{}}
	var reported []bool
	for _, look := range []retention.Look{fresh, a, longer, {Other: true}, longer, b, a, fresh, a} {
		reported = append(reported, job.learn(look, ""))
	}
	require.Equal(t, []bool{false, true, false, false, false, true, true, false, true}, reported)
}
