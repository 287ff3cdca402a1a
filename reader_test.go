package redischannels

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/foreign"
	"github.com/flaminco/redischannels/internal/source"
)

// readerOf is a reader of a Go channel.
func readerOf[T any](t *testing.T, codec Codec) (r *Reader[T], in chan *message.Message) {
	t.Helper()
	in = make(chan *message.Message, 100)
	return sourceReader[T](t, codec, messageDecoding{}, func(ctx context.Context) (source.Source, error) {
		return foreign.Open(ctx, func(context.Context) (<-chan *message.Message, error) { return in, nil },
			foreign.Config{Topic: "t", Patience: time.Second, Left: func() {}, Skipped: func(string, error) {}})
	}), in
}

// sourceReader is a reader of a source.
func sourceReader[T any](t *testing.T, codec Codec, decoding decoding, subscribe subscribeFunc) *Reader[T] {
	t.Helper()
	code, err := newCoder[T](codec)
	require.NoError(t, err)
	return newReader(transport{
		topic: "t", subscribe: subscribe, decoding: decoding, drain: time.Second, logger: watermill.NopLogger{},
	}, code)
}

func sendNumber(in chan<- *message.Message, v int) *message.Message {
	msg := message.NewMessage(fmt.Sprint(v), fmt.Append(nil, v))
	in <- msg
	return msg
}

// gapSource has a gap behind its first attempt, once.
type gapSource struct {
	source.Source
	reads int
}

func (s *gapSource) NextBatch(ctx context.Context, dst []*source.Attempt, limits source.Limits) ([]*source.Attempt, error) {
	if s.reads++; s.reads == 2 {
		return dst, &source.GapError{Topic: "t", After: "3-0"}
	}
	return s.Source.NextBatch(ctx, dst, limits)
}

// WaitToRead changes nothing: neither the order of values, nor that of a gap and what is
// behind it.
func TestReader_WaitToReadTakesNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, in := readerOf[int](t, nil)
		subscribe := r.source.subscribe
		r.source.subscribe = func(ctx context.Context) (source.Source, error) {
			src, err := subscribe(ctx)
			return &gapSource{Source: src, reads: -3}, err // three waits and a read
		}
		for v := range 3 {
			sendNumber(in, v)
		}
		for _, want := range []string{"0", "gap after 3-0", "1", "2"} {
			for range 3 {
				ok, err := r.WaitToRead(t.Context())
				require.NoError(t, err)
				require.True(t, ok)
			}
			v, err := r.Read(t.Context())
			got := fmt.Sprint(v)
			var gap *GapError
			if errors.As(err, &gap) {
				got = "gap after " + gap.After
			}
			require.Equal(t, want, got)
		}
		require.NoError(t, r.Close())
		ok, err := r.WaitToRead(t.Context())
		require.NoError(t, err)
		require.False(t, ok)
	})
}

// A caller that waits for a value gets it, whatever others find out about it.
func TestReader_WaitToReadWakesAReader(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, in := readerOf[int](t, nil)
		read := make(chan int, 1)
		waited := make(chan bool, 1)
		go func() {
			ok, _ := r.WaitToRead(t.Context())
			waited <- ok
		}()
		synctest.Wait() // so that the value comes to the one who does not take it
		go func() {
			v, _ := r.Read(t.Context())
			read <- v
		}()
		synctest.Wait()
		sendNumber(in, 7)
		require.True(t, <-waited)
		require.Equal(t, 7, <-read)
		require.NoError(t, r.Close())
	})
}

// Silence, however long, ended loops or made them yield a zero value.
func TestReader_LoopsWaitOutSilence(t *testing.T) {
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
				r, in := readerOf[int](t, nil)
				r.transport.live(r.transport.subscribe)
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
					sendNumber(in, v)
					want = append(want, v)
				}
				time.Sleep(24 * time.Hour)
				synctest.Wait()
				require.Equal(t, want, seen)
				cancel()
				<-ended
				require.Equal(t, want, seen)
				require.NoError(t, r.Close())
			})
		})
	}
}

// A subscription that Close has ended was not ended by its subscriber.
func TestReader_SaysWhoHasEndedIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, in := readerOf[int](t, nil)
		reading := make(chan error)
		go func() {
			_, err := r.Read(t.Context())
			reading <- err
		}()
		synctest.Wait()
		go func() { _ = r.Close() }()
		err := <-reading
		require.ErrorIs(t, err, ErrClosed)
		require.NotContains(t, err.Error(), "subscriber")
		close(in)
		<-r.Done()

		r, in = readerOf[int](t, nil)
		close(in)
		_, err = r.Read(t.Context())
		require.ErrorIs(t, err, ErrClosed)
		require.ErrorContains(t, err, "ended by its subscriber")
		require.Equal(t, err, r.Err())
		require.NoError(t, r.Close())
	})
}

// Bug: a message that was published twice is two deliveries of one ID, which had one place among
// the unacknowledged ones: the first could not be acknowledged.
func TestReader_TwoDeliveriesOfOneID(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, in := readerOf[int](t, nil)
		var msgs []*message.Message
		var deliveries []Delivery[int]
		for i := range 4 {
			msg := message.NewMessage("u", fmt.Append(nil, i))
			in <- msg
			d, err := r.Receive(t.Context())
			require.NoError(t, err)
			msgs, deliveries = append(msgs, msg), append(deliveries, d)
		}
		require.NoError(t, deliveries[1].Ack())
		require.ErrorIs(t, deliveries[1].Ack(), ErrNotPending)
		for _, i := range []int{3, 2} { // by the ID the latest comes first
			n, err := r.Ack(t.Context(), "u")
			require.NoError(t, err)
			require.Equal(t, 1, n)
			require.ErrorIs(t, deliveries[i].Nack(), ErrNotPending)
			<-msgs[i].Acked()
		}
		require.NoError(t, deliveries[0].Ack())
		_, err := r.Ack(t.Context(), "u")
		require.ErrorIs(t, err, ErrNotPending)
		require.Empty(t, r.unacked.byID)
		close(in)
		require.NoError(t, r.Close())
	})
}

// An end that the transport refuses leaves the delivery as it is.
func TestReader_RefusedEndKeepsTheDelivery(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, in := readerOf[int](t, nil)
		msg := sendNumber(in, 1)
		d, err := r.Receive(t.Context())
		require.NoError(t, err)
		require.ErrorIs(t, d.Reject("no"), ErrNotSupported)
		require.ErrorIs(t, d.NackAfter(time.Second), ErrNotSupported)
		require.NoError(t, d.Context().Err())
		n, err := r.Ack(t.Context(), d.ID)
		require.NoError(t, err)
		require.Equal(t, 1, n)
		<-msg.Acked()
		close(in)
		require.NoError(t, r.Close())
	})
}

// A value that does not decode is skipped where there are no dead letters, and reported.
func TestReader_UndecodableValue(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, in := readerOf[int](t, nil)
		bad := message.NewMessage("bad", []byte(`"`+marker+`"`))
		in <- bad
		sendNumber(in, 1)
		_, err := r.Receive(t.Context())
		var failure *DecodeError
		require.ErrorAs(t, err, &failure)
		require.Equal(t, "bad", failure.EntryID)
		require.Equal(t, "t", failure.Topic)
		require.NotContains(t, err.Error(), marker)
		<-bad.Acked()
		v, err := r.Read(t.Context())
		require.NoError(t, err)
		require.Equal(t, 1, v)
		close(in)
		require.NoError(t, r.Close())
	})
}
