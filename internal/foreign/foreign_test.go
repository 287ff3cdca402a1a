package foreign

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/source"
)

// transport is a subscriber that sends what a test puts into it.
type transport struct {
	in      chan *message.Message
	skipped []string
	left    bool
}

// open opens a source that must be closed in the same bubble.
func open(t *testing.T) (*Source, *transport) {
	t.Helper()
	tr := &transport{in: make(chan *message.Message, 100)}
	s, err := Open(t.Context(), func(ctx context.Context) (<-chan *message.Message, error) {
		context.AfterFunc(ctx, func() { close(tr.in) })
		return tr.in, nil
	}, Config{
		Topic: "t", Patience: time.Second,
		Skipped: func(id string, _ error) { tr.skipped = append(tr.skipped, id) },
		Left:    func() { tr.left = true },
	})
	require.NoError(t, err)
	return s, tr
}

func (tr *transport) send(payloads ...string) []*message.Message {
	var msgs []*message.Message
	for _, p := range payloads {
		msgs = append(msgs, message.NewMessage(p, []byte(p)))
		tr.in <- msgs[len(msgs)-1]
	}
	return msgs
}

func batch(t *testing.T, s *Source, limits source.Limits) []*source.Attempt {
	t.Helper()
	attempts, err := s.NextBatch(t.Context(), nil, limits)
	require.NoError(t, err)
	return attempts
}

func payloads(attempts []*source.Attempt) (all []string) {
	for _, a := range attempts {
		all = append(all, string(a.Message.Payload))
	}
	return all
}

func end(t *testing.T, a *source.Attempt, o source.Outcome) {
	t.Helper()
	require.NoError(t, a.End(o))
}

func acked(msg *message.Message) bool  { return closed(msg.Acked()) }
func nacked(msg *message.Message) bool { return closed(msg.Nacked()) }

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func TestSource_BatchIsBoundedBySize(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, tr := open(t)
		tr.send("a", "b", "c", "d", "e")
		start := time.Now()
		require.Equal(t, []string{"a", "b", "c"}, payloads(batch(t, s, source.Limits{Max: 3, Wait: time.Hour})))
		require.Zero(t, time.Since(start), "it is full")
		require.Equal(t, []string{"d", "e"}, payloads(batch(t, s, source.Limits{Max: 3})), "what is ready without waiting")
		require.NoError(t, s.Close(t.Context()))
	})
}

// Wait begins with the first message, however long that has taken to come.
func TestSource_BatchIsBoundedByWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, tr := open(t)
		start := time.Now()
		time.AfterFunc(time.Hour, func() { tr.send("a") })
		time.AfterFunc(time.Hour+199*time.Millisecond, func() { tr.send("b") })
		time.AfterFunc(time.Hour+201*time.Millisecond, func() { tr.send("c") })
		require.Equal(t, []string{"a", "b"}, payloads(batch(t, s, source.Limits{Max: 10, Wait: 200 * time.Millisecond})))
		require.Equal(t, time.Hour+200*time.Millisecond, time.Since(start))
		require.Equal(t, []string{"c"}, payloads(batch(t, s, source.Limits{Max: 10, Wait: 200 * time.Millisecond})))
		require.Equal(t, time.Hour+401*time.Millisecond, time.Since(start))
		require.NoError(t, s.Close(t.Context()))
	})
}

// One message may exceed Bytes; what does not fit begins the next batch.
func TestSource_BatchIsBoundedByBytes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, tr := open(t)
		limits := source.Limits{Max: 10, Bytes: 10, Wait: time.Second}
		large := strings.Repeat("x", 11)
		tr.send("12345", "67890", "1", large, "2")
		start := time.Now()
		require.Equal(t, []string{"12345", "67890"}, payloads(batch(t, s, limits)))
		require.Equal(t, []string{"1"}, payloads(batch(t, s, limits)))
		require.Equal(t, []string{large}, payloads(batch(t, s, limits)))
		require.Zero(t, time.Since(start), "none of them had room")
		require.Equal(t, []string{"2"}, payloads(batch(t, s, limits)))
		require.Equal(t, time.Second, time.Since(start))
		tr.send("1234567890")
		require.Equal(t, []string{"1234567890"}, payloads(batch(t, s, limits)))
		require.Equal(t, time.Second, time.Since(start), "it waited for more, which had no room")
		require.NoError(t, s.Close(t.Context()))
	})
}

// A context that ends cuts a batch that has begun short, and is an error before that.
func TestSource_ContextEndsABatch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, tr := open(t)
		tr.send("a")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		attempts, err := s.NextBatch(ctx, nil, source.Limits{Max: 10, Wait: time.Hour})
		require.NoError(t, err)
		require.Equal(t, []string{"a"}, payloads(attempts))
		_, err = s.NextBatch(ctx, nil, source.Limits{Max: 10, Wait: time.Hour})
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.NoError(t, s.Close(t.Context()))
		_, err = s.NextBatch(t.Context(), nil, source.Limits{Max: 1})
		require.ErrorIs(t, err, source.ErrClosed)
	})
}

func TestSource_TryDoesNotWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) { // where waiting in vain is an error
		s, tr := open(t)
		require.Empty(t, batch(t, s, source.Limits{Max: 1, Try: true}))
		tr.send("a")
		require.Len(t, batch(t, s, source.Limits{Max: 1, Try: true}), 1)
		require.Empty(t, batch(t, s, source.Limits{Max: 1, Try: true}))
		require.NoError(t, s.Close(t.Context()))
	})
}

// The end of the subscription by its subscriber is distinguished from the one by Close.
func TestSource_EndedByItsSubscriber(t *testing.T) {
	t.Parallel()
	for range 20 {
		tr := make(chan *message.Message)
		s, err := Open(t.Context(), func(context.Context) (<-chan *message.Message, error) { return tr, nil }, Config{Patience: time.Minute})
		require.NoError(t, err)
		close(tr)
		_, err = s.NextBatch(t.Context(), nil, source.Limits{Max: 1})
		require.ErrorIs(t, err, source.ErrEnded)
		require.NoError(t, s.Close(t.Context()))
		_, err = s.NextBatch(t.Context(), nil, source.Limits{Max: 1})
		require.ErrorIs(t, err, source.ErrClosed)
	}
}

// A context that ends while the subscriber subscribes leaves no subscription behind.
func TestSource_ContextEndsWhileOpening(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		lost := message.NewMessage("a", nil)
		_, err := Open(ctx, func(life context.Context) (<-chan *message.Message, error) {
			in := make(chan *message.Message, 1)
			in <- lost
			cancel()
			context.AfterFunc(life, func() { close(in) })
			return in, nil
		}, Config{Patience: time.Hour})
		require.ErrorIs(t, err, context.Canceled)
		require.True(t, nacked(lost))

		refused := errors.New("refused")
		_, err = Open(t.Context(), func(context.Context) (<-chan *message.Message, error) { return nil, refused }, Config{})
		require.ErrorIs(t, err, refused)
	})
}

// A message that is released or withdrawn is the next one again, without the transport. After a
// second without a reader the transport gets it back.
func TestSource_ReleaseAndWithdraw(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, tr := open(t)
		msgs := tr.send("a", "b", "c")
		for range 3 {
			a := batch(t, s, source.Limits{Max: 1, Offer: true})[0]
			require.Equal(t, msgs[0], a.Message)
			end(t, a, source.Outcome{Kind: source.Withdraw})
		}
		two := batch(t, s, source.Limits{Max: 2})
		require.Equal(t, []string{"a", "b"}, payloads(two))
		end(t, two[0], source.Outcome{Kind: source.Release})
		end(t, two[1], source.Outcome{Kind: source.Release})
		require.ErrorIs(t, two[1].End(source.Outcome{Kind: source.Ack}), source.ErrNotPending)
		time.Sleep(keepReturned - time.Millisecond)
		two = batch(t, s, source.Limits{Max: 2})
		require.Equal(t, []string{"a", "b"}, payloads(two))
		end(t, two[0], source.Outcome{Kind: source.Ack})
		end(t, two[1], source.Outcome{Kind: source.Release})
		require.True(t, acked(msgs[0]))
		time.Sleep(keepReturned - time.Millisecond)
		synctest.Wait()
		require.False(t, nacked(msgs[1]))
		time.Sleep(time.Millisecond)
		synctest.Wait()
		require.True(t, nacked(msgs[1]))
		require.Equal(t, []string{"c"}, payloads(batch(t, s, source.Limits{Max: 2})))
		require.NoError(t, s.Close(t.Context()))
	})
}

// A caller that waits gets what another caller has returned.
func TestSource_ReturnedMessageWakesACaller(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, tr := open(t)
		tr.send("a", "b")
		two := batch(t, s, source.Limits{Max: 2})
		got := make(chan string, 2)
		for range 2 {
			go func() { got <- payloads(batch(t, s, source.Limits{Max: 1}))[0] }()
		}
		synctest.Wait()
		end(t, two[0], source.Outcome{Kind: source.Release})
		end(t, two[1], source.Outcome{Kind: source.Release})
		require.ElementsMatch(t, []string{"a", "b"}, []string{<-got, <-got})
		require.NoError(t, s.Close(t.Context()))
	})
}

// A transport without dead letters and delays refuses what it cannot do, and the attempt is
// still to be ended.
func TestSource_RefusesWhatTheTransportCannotDo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, tr := open(t)
		msgs := tr.send("a", "b")
		a := batch(t, s, source.Limits{Max: 1})[0]
		for _, o := range []source.Outcome{
			{Kind: source.Reject, Reason: "r"},
			{Kind: source.Nack, Delay: time.Second},
			{Kind: source.Nack},
			{Kind: source.Release, Delay: time.Second},
		} {
			require.ErrorIs(t, a.End(o), source.ErrNotSupported)
		}
		end(t, a, source.Outcome{Kind: source.Ack})
		require.True(t, acked(msgs[0]))

		// A message that cannot be decoded would be redelivered forever.
		end(t, batch(t, s, source.Limits{Max: 1})[0], source.Outcome{Kind: source.Undecodable})
		require.True(t, acked(msgs[1]))
		require.Equal(t, []string{"b"}, tr.skipped)
		require.NoError(t, s.Close(t.Context()))
	})
}

// The parts of a batch that has failed are redelivered in batches of their own.
func TestSource_SplitBatches(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, tr := open(t)
		tr.send("a", "b", "c", "d", "e", "f")
		for i, a := range batch(t, s, source.Limits{Max: 5}) {
			end(t, a, source.Outcome{Kind: source.Nack, Split: []int{7, 7, 8, source.Single, source.Single}[i]})
		}
		var got [][]string
		var splits []int
		for range 5 {
			b := batch(t, s, source.Limits{Max: 5})
			got, splits = append(got, payloads(b)), append(splits, b[0].Split)
			for _, a := range b {
				end(t, a, source.Outcome{Kind: source.Ack})
			}
		}
		require.Equal(t, [][]string{{"a", "b"}, {"c"}, {"d"}, {"e"}, {"f"}}, got)
		require.Equal(t, []int{7, 8, source.Single, source.Single, 0}, splits)
		require.NoError(t, s.Close(t.Context()))
	})
}

// Bug: gochannel redelivers at once, so a message that always failed was tried 31,805 times in
// 300 ms.
func TestSource_RedeliveryBacksOff(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		transport := gochannel.NewGoChannel(gochannel.Config{Persistent: true}, watermill.NopLogger{})
		s, err := Open(t.Context(), func(ctx context.Context) (<-chan *message.Message, error) {
			return transport.Subscribe(ctx, "t")
		}, Config{Patience: time.Second})
		require.NoError(t, err)
		require.NoError(t, transport.Publish("t", message.NewMessage("bad", nil)))
		start := time.Now()
		var at []time.Duration
		for range 10 {
			a := batch(t, s, source.Limits{Max: 1})[0]
			at = append(at, time.Since(start))
			end(t, a, source.Outcome{Kind: source.Nack, Delay: source.OwnersDelay})
		}
		ms := time.Millisecond
		require.Equal(t, []time.Duration{0, 10 * ms, 30 * ms, 70 * ms, 150 * ms, 310 * ms, 630 * ms, 1270 * ms, 2270 * ms, 3270 * ms}, at)

		end(t, batch(t, s, source.Limits{Max: 1})[0], source.Outcome{Kind: source.Ack})
		require.NoError(t, transport.Publish("t", message.NewMessage("bad", nil))) // with the same UUID
		end(t, batch(t, s, source.Limits{Max: 1})[0], source.Outcome{Kind: source.Nack, Delay: source.OwnersDelay})
		start = time.Now()
		end(t, batch(t, s, source.Limits{Max: 1})[0], source.Outcome{Kind: source.Nack, Delay: source.OwnersDelay})
		require.Equal(t, 10*ms, time.Since(start), "it is another message")

		require.NoError(t, s.Close(t.Context()), "it does not wait for the back-off")
		require.Equal(t, 10*ms, time.Since(start))
		require.NoError(t, transport.Close())
	})
}

// Close releases what was not delivered, at once, and waits no longer than Patience for a subscriber
// that does not end.
func TestSource_CloseGivesBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, tr := open(t)
		msgs := tr.send("released", "nacked", "buffered")
		two := batch(t, s, source.Limits{Max: 2})
		end(t, two[0], source.Outcome{Kind: source.Release})
		end(t, two[1], source.Outcome{Kind: source.Nack, Delay: source.OwnersDelay})
		require.NoError(t, s.Close(t.Context()))
		for _, msg := range msgs {
			require.True(t, nacked(msg), msg.UUID)
		}
		require.False(t, tr.left)
		s.putLast(delivery{msg: msgs[0]})
		require.Empty(t, s.returned, "what comes later is released at once")

		left := false
		endless := make(chan *message.Message)
		s, err := Open(t.Context(), func(context.Context) (<-chan *message.Message, error) { return endless, nil },
			Config{Patience: time.Minute, Left: func() { left = true }})
		require.NoError(t, err)
		start := time.Now()
		require.NoError(t, s.Close(t.Context()))
		require.Equal(t, time.Minute, time.Since(start))
		require.True(t, left)
	})
}

// owner is that of attempts of another source.
type owner struct{}

func (owner) Started(*source.Attempt)                     {}
func (owner) Ended(*source.Attempt, source.Outcome) error { return nil }
func (owner) Late(*source.Attempt, source.Outcome)        {}

// ownMessage is a message of a Subscriber of this module, and its attempt.
func ownMessage(uuid string, split int) (*message.Message, *source.Attempt) {
	msg := message.NewMessage(uuid, nil)
	a := &source.Attempt{
		From:  &source.Origin{Topic: "theirs", Values: context.Background(), Owner: owner{}},
		Topic: "theirs", ID: uuid, Count: 3, Split: split, Message: msg,
	}
	msg.SetContext(a)
	return msg, a
}

// A message of a subscriber of this module supports every end; which one it is meant is asked
// for before the Nack.
func TestSource_EndsOfOurOwnMessages(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, tr := open(t)
		for _, o := range []source.Outcome{
			{Kind: source.Reject, Reason: "r"},
			{Kind: source.Undecodable, Reason: "u"},
			{Kind: source.Nack, Delay: time.Second},
			{Kind: source.Nack, Split: 4},
			{Kind: source.Release, Delay: time.Second},
		} {
			msg, theirs := ownMessage("1-0", 0)
			tr.in <- msg
			a := batch(t, s, source.Limits{Max: 1})[0]
			require.Equal(t, "1-0", a.ID)
			require.Equal(t, "theirs", a.Topic)
			require.Equal(t, 3, a.Count)
			end(t, a, o)
			require.True(t, nacked(msg))
			require.Equal(t, o, theirs.Requested())
		}
		msg, theirs := ownMessage("1-0", 0)
		tr.in <- msg
		theirs.Request(source.Outcome{Kind: source.Reject})
		end(t, batch(t, s, source.Limits{Max: 1})[0], source.Outcome{Kind: source.Nack, Delay: source.OwnersDelay})
		require.Equal(t, source.Reject, theirs.Requested().Kind, "a plain Nack is meant as the application has asked")

		// Their sub-batches are those of theirs.
		for i, split := range []int{0, 5, 5, source.Single, source.Single} {
			msg, _ := ownMessage(string(rune('a'+i)), split)
			tr.in <- msg
		}
		for _, want := range []int{1, 2, 1, 1} {
			require.Len(t, batch(t, s, source.Limits{Max: 5}), want)
		}

		msg, theirs = ownMessage("1-0", 0)
		tr.in <- msg
		end(t, batch(t, s, source.Limits{Max: 1})[0], source.Outcome{Kind: source.Release})
		time.Sleep(2 * keepReturned)
		require.Equal(t, source.Release, theirs.Requested().Kind, "releasing it counts no delivery")
		require.NoError(t, s.Close(t.Context()))
	})
}

// A transport within the process may keep the context of what is published: the message of
// another subscription was ended.
func TestSource_ContextOfAnotherMessage(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, tr := open(t)
		_, theirs := ownMessage("1-0", 5)
		msg := message.NewMessage("a", nil)
		msg.SetContext(theirs)
		tr.in <- msg
		a := batch(t, s, source.Limits{Max: 1})[0]
		require.Empty(t, a.ID)
		require.Zero(t, a.Split)
		require.Nil(t, source.FromContext(msg.Context()), "Reject would reach the other one")
		require.ErrorIs(t, a.End(source.Outcome{Kind: source.Reject}), source.ErrNotSupported)
		end(t, a, source.Outcome{Kind: source.Ack})
		require.NoError(t, theirs.Err())
		require.NoError(t, s.Close(t.Context()))
	})
}
