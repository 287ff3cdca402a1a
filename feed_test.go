package redischannels

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/stream"
)

// feedOf is a feed of these entries, which are ready when it is opened, and what takes more.
func feedOf(t *testing.T, start stream.ID, ids ...string) (f *feed, in chan *message.Message) {
	t.Helper()
	in = make(chan *message.Message, 100)
	for _, id := range ids {
		in <- entryMessage(id, 1)
	}
	f = newFeed(feedConfig{
		topic: "t",
		subscribe: func(_ context.Context, f *feed) (<-chan *message.Message, error) {
			f.start = start
			return in, nil
		},
		report: func(Event) {},
	})
	t.Cleanup(f.close)
	return f, in
}

// entryMessage is a message as a subscription without a group hands it over.
func entryMessage(id string, count int) *message.Message {
	msg := message.NewMessage(id, nil)
	msg.SetContext(&delivery{from: &origin{topic: "t", values: context.Background()}, id: id, count: count})
	return msg
}

// told is what the next n reads return: IDs, and gaps by the ID before them.
func told(t *testing.T, f *feed, n int) (seen []string) {
	t.Helper()
	for range n {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		msg, err := f.next(ctx)
		cancel()
		var gap *GapError
		switch {
		case errors.As(err, &gap):
			seen = append(seen, "gap after "+gap.After)
		case err != nil:
			seen = append(seen, err.Error())
		default:
			seen = append(seen, idOf(msg))
			msg.Ack()
		}
	}
	return seen
}

// A gap is told behind what was before it and before what comes behind it, whatever is ready
// when, and without waiting for more. Where there is a choice the order of a select is random,
// so each case is tried often.
func TestFeedReportsGapsInTheirPlace(t *testing.T) {
	t.Parallel()
	cases := map[string]struct {
		entries []string
		gaps    []string
		want    []string
	}{
		"between":                    {[]string{"1-0", "2-0", "5-0"}, []string{"2-0"}, []string{"1-0", "2-0", "gap after 2-0", "5-0"}},
		"behind all":                 {[]string{"1-0", "2-0"}, []string{"2-0"}, []string{"1-0", "2-0", "gap after 2-0"}},
		"at the start":               {[]string{"5-0"}, []string{"0-0"}, []string{"gap after 0-0", "5-0"}},
		"alone":                      {nil, []string{"0-0"}, []string{"gap after 0-0"}},
		"with one entry between":     {[]string{"1-0", "3-0"}, []string{"1-0", "3-0"}, []string{"1-0", "gap after 1-0", "3-0", "gap after 3-0"}},
		"twice before the same":      {[]string{"1-0", "9-0"}, []string{"1-0", "5-0"}, []string{"1-0", "gap after 1-0", "gap after 5-0", "9-0"}},
		"twice, with nothing before": {[]string{"1-0", "9-0"}, []string{"3-0", "5-0"}, []string{"1-0", "gap after 3-0", "gap after 5-0", "9-0"}},
		"before a redelivered entry": {[]string{"1-0", "2-0", "1-0"}, []string{"2-0"}, []string{"1-0", "2-0", "gap after 2-0", "1-0"}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for range 30 {
				f, _ := feedOf(t, stream.ID{}, c.entries...)
				for _, asked := range c.gaps {
					f.gap(&GapError{Topic: "t", After: asked}, stream.ID{})
				}
				require.Equal(t, c.want, told(t, f, len(c.want)))
			}
		})
	}
}

// One that reading begins with is told at once, and so is one that comes while a reader waits.
func TestFeedReportsAGapWhileWaiting(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f, in := feedOf(t, stream.ID{Ms: 7})
		defer f.close()
		f.gap(&GapError{After: "3-0"}, stream.ID{})
		require.Equal(t, []string{"gap after 3-0"}, told(t, f, 1))
		in <- entryMessage("8-0", 1)
		require.Equal(t, []string{"8-0"}, told(t, f, 1))
		f.gap(&GapError{After: "8-0"}, stream.ID{Ms: 20})
		require.Equal(t, []string{"gap after 8-0"}, told(t, f, 1))
		f.gap(&GapError{After: "20-0"}, stream.ID{}) // nothing was left between
		require.Equal(t, []string{"gap after 20-0"}, told(t, f, 1))
		in <- entryMessage("30-0", 1)
		require.Equal(t, []string{"30-0"}, told(t, f, 1))
		seen := make(chan []string)
		go func() { seen <- told(t, f, 1) }()
		synctest.Wait()
		f.gap(&GapError{After: "30-0"}, stream.ID{})
		require.Equal(t, []string{"gap after 30-0"}, <-seen)
	})
}

// Looking whether there is something to read changes no order: neither that of values which
// loops have handed back nor that of a gap and what is behind it.
func TestWaitToReadTakesNothing(t *testing.T) {
	t.Parallel()
	for range 30 {
		f, _ := feedOf(t, stream.ID{}, "1-0", "2-0", "5-0")
		r := &Reader[int]{feed: f}
		one, err := f.next(t.Context())
		require.NoError(t, err)
		two, err := f.next(t.Context())
		require.NoError(t, err)
		f.gap(&GapError{After: "3-0"}, stream.ID{})
		f.hold(one).unread()
		f.hold(two).unread()
		for _, want := range []string{"1-0", "2-0", "gap after 3-0", "5-0"} {
			for range 3 { // an odd number: each would turn two values round
				ok, err := r.WaitToRead(t.Context())
				require.NoError(t, err)
				require.True(t, ok)
			}
			require.Equal(t, []string{want}, told(t, f, 1))
		}
	}
}

// TryReceive returns at once: with what is ready, which a gap may be, and with nothing.
func TestFeedTryNextDoesNotWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) { // where waiting in vain is an error
		f, in := feedOf(t, stream.ID{})
		defer f.close()
		for range 3 {
			msg, err := f.tryNext()
			require.NoError(t, err)
			require.Nil(t, msg)
		}
		in <- entryMessage("1-0", 1)
		f.gap(&GapError{After: "1-0"}, stream.ID{})
		msg, err := f.tryNext()
		require.NoError(t, err)
		require.Equal(t, "1-0", idOf(msg))
		var gap *GapError
		_, err = f.tryNext()
		require.ErrorAs(t, err, &gap)
		msg, err = f.tryNext()
		require.NoError(t, err)
		require.Nil(t, msg)
	})
}

// Silence, however long, ended loops or made them yield a zero value.
func TestLoopsWaitOutSilence(t *testing.T) {
	t.Parallel()
	for name, loop := range map[string]func(ctx context.Context, r *Reader[int], see func(int, error)){
		"All": func(ctx context.Context, r *Reader[int], see func(int, error)) {
			for v, err := range r.All(ctx) {
				see(v, err)
			}
		},
		"Deliveries": func(ctx context.Context, r *Reader[int], see func(int, error)) {
			for d, err := range r.Deliveries(ctx) {
				see(d.Value, errors.Join(err, d.Ack()))
			}
		},
		"Follow": func(ctx context.Context, r *Reader[int], see func(int, error)) {
			for d, err := range r.Follow(ctx, Latest) {
				see(d.Value, err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				f, in := feedOf(t, stream.ID{})
				code, err := newCoder[int](nil)
				require.NoError(t, err)
				r := &Reader[int]{feed: f, code: code}
				if name == "Follow" {
					r.feed, _ = feedOf(t, stream.ID{})
					r.transport.follow = func(Position) (*feed, error) { return f, nil }
				}
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan struct{})
				var seen []int
				go func() {
					defer close(ended)
					loop(ctx, r, func(v int, err error) {
						if err != nil {
							v = -1
						}
						seen = append(seen, v)
					})
				}()
				var want []int
				for v := range 3 { // 0 first: it is a value
					time.Sleep(24 * time.Hour) // of the bubble: none at all
					msg := entryMessage(fmt.Sprintf("%d-0", v+1), 1)
					msg.Payload = fmt.Append(nil, v)
					in <- msg
					want = append(want, v)
				}
				time.Sleep(24 * time.Hour)
				synctest.Wait()
				require.Equal(t, want, seen)
				cancel()
				<-ended
				require.Equal(t, want, seen)
				r.feed.close()
				f.close()
			})
		})
	}
}

// A subscription that Close has ended was not ended by its subscriber.
func TestFeedReportsWhatEndedIt(t *testing.T) {
	t.Parallel()
	for range 30 {
		f, in := feedOf(t, stream.ID{})
		require.NoError(t, f.open(t.Context()))
		f.stop()
		close(in)
		_, err := f.next(t.Context())
		require.ErrorIs(t, err, ErrClosed)
		require.NotContains(t, err.Error(), "subscriber")
	}
	f, in := feedOf(t, stream.ID{})
	close(in)
	_, err := f.next(t.Context())
	require.ErrorContains(t, err, "ended by its subscriber")
}

// A message that somebody has published twice is two deliveries of one ID, which had one place
// among those to be settled: the first could not be. Each is settled for itself.
func TestFeedHoldsTwoOfOneID(t *testing.T) {
	t.Parallel()
	f, _ := feedOf(t, stream.ID{})
	f.limit = 3
	var held []*handled
	var msgs []*message.Message
	for i := range 3 {
		msg := message.NewMessage("u", []byte(fmt.Sprint(i)))
		msgs = append(msgs, msg)
		held = append(held, f.hold(msg))
	}
	require.Equal(t, 3, f.outstanding())
	require.True(t, f.isFull())
	require.NoError(t, held[1].ack())
	require.ErrorIs(t, held[1].ack(), ErrNotPending)
	<-msgs[1].Acked()
	require.Equal(t, 2, f.outstanding())
	for left := 1; left >= 0; left-- { // by the ID, the latest first
		h, err := f.find("u")
		require.NoError(t, err)
		require.NoError(t, h.nack())
		require.Equal(t, left, f.outstanding())
	}
	<-msgs[0].Nacked()
	<-msgs[2].Nacked()
	_, err := f.find("u")
	require.ErrorIs(t, err, ErrNotPending)
	require.False(t, f.isFull())
}
