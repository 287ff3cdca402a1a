package tests

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// prompt is how soon a call must return after its context or timeout has ended;
// the design says 50 ms, the rest is for a busy machine with the race detector.
const prompt = 150 * time.Millisecond

func pubTimeout(d time.Duration) func(*redischannels.PublisherConfig) {
	return func(c *redischannels.PublisherConfig) { c.Timeout = d }
}

// pubProxy starts a private server behind a proxy. Both clients are of the
// default user; the second one goes around the proxy.
func pubProxy(t *testing.T, change ...func(*redis.Options)) (proxy *redistest.Proxy, client, direct *redis.Client) {
	t.Helper()
	server := redistest.Start(t)
	proxy = redistest.NewProxy(t, server.Addr())
	client = server.Client(t, append([]func(*redis.Options){redistest.Via(proxy)}, change...)...)
	return proxy, client, server.Client(t)
}

// warm opens the connections that the publisher uses, so that the next publish is
// sent at once.
func pubWarm(t *testing.T, p *redischannels.Publisher) {
	t.Helper()
	topic := redistest.Key(t, "warm")
	// The first connection may take longer than the timeout of a test for timeouts.
	for n := 2; n > 0; n-- {
		redistest.Eventually(t, 10*time.Second, func() bool { return p.Publish(topic, pubMessages("w", n)...) == nil }, "a connection")
	}
}

// pubLooked waits until the publisher has looked for delayed messages, which it does after its first
// message to a topic.
func pubLooked(t *testing.T, client, direct *redis.Client) {
	t.Helper()
	redistest.Eventually(t, 10*time.Second, func() bool {
		pool := client.PoolStats()
		return redistest.CommandStats(t, direct)["zrange"] > 0 && pool.IdleConns == pool.TotalConns
	}, "the check for delayed messages is over")
}

// pubOneConnection leaves a client one connection for everything.
func pubOneConnection(o *redis.Options) { o.PoolSize, o.PipelinePoolSize = 1, -1 }

func requireOutcomes(t *testing.T, err error, want redischannels.Outcome, n int) *redischannels.PublishError {
	t.Helper()
	pe := pubError(t, err)
	require.Equal(t, n, pe.Count(want), "%v: %v", want, err)
	return pe
}

// XADD is sent again by go-redis when its reply was lost; the entry was in the
// stream twice and Publish answered nil.
func TestPublisher_LostReplyIsNeitherADuplicateNorASuccess(t *testing.T) {
	t.Parallel()
	t.Run("single", func(t *testing.T) {
		t.Parallel()
		proxy, client, direct := pubProxy(t)
		topic := redistest.Key(t)
		p := newTestPublisher(t, client)
		pubWarm(t, p)
		proxy.DropReply(1, redistest.Command("xadd"))
		err := p.Publish(topic, pubMessages("m", 1)...)
		requireOutcomes(t, err, redischannels.OutcomeUnknown, 1)
		require.ErrorIs(t, err, redischannels.ErrOutcomeUnknown)
		require.EqualValues(t, 1, direct.XLen(t.Context(), topic).Val())
		require.NoError(t, p.Publish(topic, pubMessages("n", 1)...))
	})
	t.Run("transaction", func(t *testing.T) {
		t.Parallel()
		proxy, client, direct := pubProxy(t)
		topic := redistest.Key(t)
		p := newTestPublisher(t, client)
		pubWarm(t, p)
		proxy.DropReply(1, redistest.Command("exec"))
		requireOutcomes(t, p.Publish(topic, pubMessages("m", 3)...), redischannels.OutcomeUnknown, 3)
		require.EqualValues(t, 3, direct.XLen(t.Context(), topic).Val())
	})
	t.Run("shared pipeline", func(t *testing.T) {
		t.Parallel()
		proxy, client, direct := pubProxy(t)
		topic := redistest.Key(t)
		p := newTestPublisher(t, client)
		pubWarm(t, p)
		proxy.Delay(2 * time.Millisecond)                     // so that callers come together
		rule := proxy.DropReply(1, redistest.Contains("/5/")) // many callers, in their sixth round
		var mu sync.Mutex
		outcome := make(map[string]redischannels.Outcome)
		var wg sync.WaitGroup
		for c := range 24 {
			wg.Go(func() {
				for r := range 10 {
					msg := pubMessages(fmt.Sprint(c, "/", r, "/"), 1)[0]
					err := p.Publish(topic, msg)
					o := redischannels.OutcomeAppended
					var pe *redischannels.PublishError
					if errors.As(err, &pe) {
						o = pe.Results[0].Outcome
					} else if err != nil {
						t.Error(err)
					}
					mu.Lock()
					outcome[msg.UUID] = o
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		proxy.Delay(0)
		rule.Wait(t, time.Second)
		_, uuids := pubEntries(t, direct, topic)
		count := make(map[string]int)
		for _, u := range uuids {
			count[u]++
		}
		unknown := 0
		for uuid, o := range outcome {
			switch o {
			case redischannels.OutcomeAppended:
				require.Equal(t, 1, count[uuid], uuid)
			case redischannels.OutcomeNotAppended:
				require.Equal(t, 0, count[uuid], uuid)
			default:
				unknown++
				require.LessOrEqual(t, count[uuid], 1, uuid)
			}
		}
		require.Positive(t, unknown)
	})
}

// After a failure within a batch it was unknown how many messages were written.
func TestPublisher_CutInABatchGivesExactOutcomes(t *testing.T) {
	t.Parallel()
	t.Run("the transaction is not complete", func(t *testing.T) {
		t.Parallel()
		proxy, client, direct := pubProxy(t)
		topic := redistest.Key(t)
		p := newTestPublisher(t, client)
		pubWarm(t, p)
		proxy.DropRequest(1, redistest.Command("exec"))
		requireOutcomes(t, p.Publish(topic, pubMessages("m", 100)...), redischannels.OutcomeUnknown, 100)
		require.Zero(t, direct.XLen(t.Context(), topic).Val(), "all or none")
	})
	t.Run("the second of three transactions", func(t *testing.T) {
		t.Parallel()
		proxy, client, direct := pubProxy(t)
		topic := redistest.Key(t)
		p := newTestPublisher(t, client)
		pubWarm(t, p)
		msgs := pubMessages("m", 1200)
		proxy.DropReply(1, redistest.Contains("m777"))
		ids, err := p.Append(t.Context(), topic, msgs...)
		pe := requireOutcomes(t, err, redischannels.OutcomeAppended, 500)
		require.Equal(t, 500, pe.Count(redischannels.OutcomeUnknown))
		require.Equal(t, 200, pe.Count(redischannels.OutcomeNotAppended))
		require.Equal(t, redischannels.OutcomeNotAppended, pe.Results[1199].Outcome)
		require.Equal(t, "m1199", pe.Results[1199].UUID)
		inStream, uuids := pubEntries(t, direct, topic)
		require.Equal(t, pubUUIDs(msgs[:1000]), uuids)
		require.Equal(t, inStream[:500], ids[:500])
		require.Equal(t, make([]string, 700), ids[500:])
	})
}

// Every failure of a write was the same `false`.
func TestPublisher_FailuresAreDistinct(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client(t)
	topic := redistest.Key(t)
	require.NoError(t, client.Set(t.Context(), topic, "x", 0).Err())
	codec := errors.New("no codec")
	p := newTestPublisher(t, client, pubTimeout(1500*time.Millisecond), func(c *redischannels.PublisherConfig) {
		c.Marshaler = pubMarshalFunc(func(msg *message.Message) ([]redischannels.Field, error) {
			if msg.UUID == "bad0" {
				return nil, codec
			}
			return pubMarshaler{}.Marshal("", msg)
		})
	})
	wrong := p.Publish(topic, pubMessages("m", 1)...)
	bad := p.Publish(topic, pubMessages("bad", 1)...)
	server.Stop()
	stopped := p.Publish(topic, pubMessages("m", 1)...)
	stoppedBatch := p.Publish(topic, pubMessages("m", 2)...)

	require.ErrorIs(t, wrong, redischannels.ErrWrongType)
	require.ErrorIs(t, bad, codec)
	for n, err := range []error{stopped, stoppedBatch} {
		requireOutcomes(t, err, redischannels.OutcomeNotAppended, n+1)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorIs(t, err, syscall.ECONNREFUSED, "the reason behind the timeout")
	}
	for _, err := range []error{bad, stopped} {
		require.NotErrorIs(t, err, redischannels.ErrWrongType)
		requireOutcomes(t, err, redischannels.OutcomeNotAppended, 1)
	}
}

// A publish hung for as long as the client's timeouts and retries, and did
// not hear its caller's cancel.
func TestPublisher_TimeoutAndCancelEndTheWait(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 3} {
		t.Run(fmt.Sprint("timeout ", n), func(t *testing.T) {
			t.Parallel()
			proxy, client, direct := pubProxy(t, pubOneConnection)
			p := newTestPublisher(t, client, pubTimeout(200*time.Millisecond))
			pubWarm(t, p)
			pubLooked(t, client, direct)
			proxy.Blackhole(true)
			start := time.Now()
			err := p.Publish(redistest.Key(t), pubMessages("m", n)...)
			require.Less(t, time.Since(start), 400*time.Millisecond)
			requireOutcomes(t, err, redischannels.OutcomeUnknown, n)
			require.ErrorIs(t, err, context.DeadlineExceeded)

			// Now there is no connection left and a new one gets no answer either.
			start = time.Now()
			err = p.Publish(redistest.Key(t), pubMessages("m", n)...)
			require.Less(t, time.Since(start), 400*time.Millisecond)
			requireOutcomes(t, err, redischannels.OutcomeNotAppended, n)
			require.ErrorIs(t, err, context.DeadlineExceeded)
		})
		t.Run(fmt.Sprint("cancel ", n), func(t *testing.T) {
			t.Parallel()
			proxy, client, _ := pubProxy(t)
			p := newTestPublisher(t, client, pubTimeout(3*time.Second))
			pubWarm(t, p)
			proxy.Blackhole(true)
			reason := errors.New("enough")
			for _, call := range []func(context.Context, ...*message.Message) error{
				func(_ context.Context, msgs ...*message.Message) error { return p.Publish("t", msgs...) },
				func(ctx context.Context, msgs ...*message.Message) error {
					_, err := p.Append(ctx, "t", msgs...)
					return err
				},
			} {
				ctx, cancel := context.WithCancelCause(t.Context())
				msgs := pubMessages("m", n)
				msgs[n-1].SetContext(ctx)
				cancelled := make(chan time.Time, 1)
				time.AfterFunc(100*time.Millisecond, func() {
					cancelled <- time.Now()
					cancel(reason)
				})
				err := call(ctx, msgs...)
				require.Less(t, time.Since(<-cancelled), prompt)
				require.ErrorIs(t, err, reason)
				require.Equal(t, n, len(pubError(t, err).Results))
			}
		})
	}
	t.Run("ended before", func(t *testing.T) {
		t.Parallel()
		client := redistest.Shared(t).Client(t)
		p := newTestPublisher(t, client)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		topic := redistest.Key(t)
		_, err := p.Append(ctx, topic, pubMessages("m", 2)...)
		require.ErrorIs(t, err, context.Canceled)
		requireOutcomes(t, err, redischannels.OutcomeNotAppended, 2)
		require.Zero(t, client.Exists(t.Context(), topic).Val())
	})
}

// A caller that gives up before its message was written must be able to publish
// it again without a duplicate: the message is withdrawn.
func TestPublisher_UnsentMessagesAreWithdrawn(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 3} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			proxy, client, direct := pubProxy(t, func(o *redis.Options) {
				o.PoolSize, o.MaxActiveConns, o.PipelinePoolSize, o.ReadTimeout = 1, 1, -1, 2*time.Second
			})
			topic := redistest.Key(t)
			p := newTestPublisher(t, client)
			pubWarm(t, p)
			release := make(chan struct{})
			reached := make(chan struct{})
			proxy.BeforeRequest(1, redistest.Contains("first0"), func() { close(reached); <-release })
			var wg sync.WaitGroup
			wg.Go(func() {
				if err := p.Publish(topic, pubMessages("first", 1)...); err != nil {
					t.Error(err)
				}
			})
			<-reached
			// The only connection is taken. Others wait for it, and one gives up.
			wg.Go(func() {
				if err := p.Publish(topic, pubMessages("patient", n)...); err != nil {
					t.Error(err)
				}
			})
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			start := time.Now()
			_, err := p.Append(ctx, topic, pubMessages("given-up", n)...)
			require.Less(t, time.Since(start), 50*time.Millisecond+prompt)
			requireOutcomes(t, err, redischannels.OutcomeNotAppended, n)
			require.ErrorIs(t, err, context.DeadlineExceeded)
			close(release)
			wg.Wait()
			_, uuids := pubEntries(t, direct, topic)
			require.Equal(t, append([]string{"first0"}, pubUUIDs(pubMessages("patient", n))...), uuids)
		})
	}
}

// A server that is away for a moment is no reason to fail, as long as nothing was
// sent to it.
func TestPublisher_UnsentMessagesAreRetried(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 3} {
		t.Run(fmt.Sprint("refused ", n), func(t *testing.T) {
			t.Parallel()
			proxy, client, direct := pubProxy(t)
			topic := redistest.Key(t)
			p := newTestPublisher(t, client)
			proxy.Refuse(true)
			time.AfterFunc(300*time.Millisecond, func() { proxy.Refuse(false) })
			require.NoError(t, p.Publish(topic, pubMessages("m", n)...))
			require.EqualValues(t, n, direct.XLen(t.Context(), topic).Val())
		})
		// After a failover the old master answers READONLY.
		t.Run(fmt.Sprint("read-only ", n), func(t *testing.T) {
			t.Parallel()
			server := redistest.Start(t)
			client := server.Client(t)
			ctx := t.Context()
			topic := redistest.Key(t)
			p := newTestPublisher(t, client)
			pubWarm(t, p)
			require.NoError(t, client.ReplicaOf(ctx, "127.0.0.1", "1").Err())
			time.AfterFunc(300*time.Millisecond, func() { client.ReplicaOf(context.Background(), "NO", "ONE") })
			require.NoError(t, p.Publish(topic, pubMessages("m", n)...))
			require.EqualValues(t, n, client.XLen(ctx, topic).Val())
		})
	}
	t.Run("pool timeout", func(t *testing.T) {
		t.Parallel()
		client := redistest.Shared(t).Client(t, func(o *redis.Options) {
			o.PoolSize, o.MaxActiveConns, o.PoolTimeout = 1, 1, 30*time.Millisecond
		})
		topic := redistest.Key(t)
		p := newTestPublisher(t, client)
		var wg sync.WaitGroup
		defer wg.Wait()
		wg.Go(func() { client.BLPop(context.Background(), 400*time.Millisecond, topic+"-list") })
		redistest.Eventually(t, time.Second, func() bool { return client.PoolStats().TotalConns == 1 && client.PoolStats().IdleConns == 0 }, "the pool is taken")
		require.NoError(t, p.Publish(topic, pubMessages("m", 1)...))
	})
}

// A hook that panics is called in a goroutine of the publisher, where only the
// publisher can save the process.
func TestPublisher_PanicInAHookIsAnError(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	client.AddHook(redistest.NewHook().Before("xadd", func(_ context.Context, cmd redis.Cmder) error {
		if fmt.Sprint(cmd.Args()[1]) == "panic" {
			panic("hook")
		}
		return nil
	}))
	p := newTestPublisher(t, client)
	ctx, cancel := context.WithCancel(t.Context()) // by a sender's goroutine
	defer cancel()
	for _, n := range []int{1, 3} {
		_, err := p.Append(ctx, "panic", pubMessages("m", n)...)
		requireOutcomes(t, err, redischannels.OutcomeNotAppended, n)
		require.ErrorContains(t, err, "panic")
		_, err = p.Append(ctx, redistest.Key(t), pubMessages("m", n)...)
		require.NoError(t, err)
	}
}

// One dead connection must not delay the messages of other callers, whether its
// own caller has given up or is still waiting.
func TestPublisher_DeadConnectionDelaysNoOtherCaller(t *testing.T) {
	t.Parallel()
	for name, callers := range map[string]int{"given up": 6, "waiting": 1} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			proxy, client, direct := pubProxy(t)
			topic := redistest.Key(t)
			p := newTestPublisher(t, client)
			pubWarm(t, p)
			sent, over := make(chan struct{}, callers), make(chan struct{})
			rule := proxy.BeforeRequest(callers, redistest.Contains("stuck"), func() { sent <- struct{}{}; <-over })
			defer rule.Remove()
			defer close(over)
			var wg sync.WaitGroup
			defer wg.Wait()
			for range callers {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				wg.Go(func() {
					_, err := p.Append(ctx, topic, pubMessages("stuck", 1)...)
					if !errors.Is(err, redischannels.ErrOutcomeUnknown) {
						t.Error(err)
					}
				})
				<-sent
				if callers > 1 {
					cancel()
					wg.Wait()
				}
			}
			start := time.Now()
			for i := range 20 {
				require.NoError(t, p.Publish(topic, pubMessages(fmt.Sprint("m", i), 1+i%2)...))
			}
			require.Less(t, time.Since(start), time.Second)
			require.EqualValues(t, 30, direct.XLen(t.Context(), topic).Val())
		})
	}
}

// A sender that waits for the handshake of a new connection cannot be stopped by
// a context. When the handshake ends after the caller got the error that its
// message is not appended, the message must not be written.
func TestPublisher_LateConnectionDoesNotCarryWithdrawnMessages(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 3} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			proxy, client, direct := pubProxy(t)
			topic := redistest.Key(t)
			p := newTestPublisher(t, client)
			if n > 1 {
				require.NoError(t, p.Publish(redistest.Key(t), pubMessages("w", 2)...)) // MULTI is allowed
				pubLooked(t, client, direct)
				proxy.Cut()
			}
			release := make(chan struct{})
			over := sync.OnceFunc(func() { close(release) })
			defer over() // a proxy that still waits would not end
			rule := proxy.BeforeRequest(1, redistest.Contains("setinfo"), func() { <-release })
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			start := time.Now()
			_, err := p.Append(ctx, topic, pubMessages("m", n)...)
			require.Less(t, time.Since(start), 100*time.Millisecond+prompt)
			requireOutcomes(t, err, redischannels.OutcomeNotAppended, n)
			over()
			rule.Wait(t, time.Second)
			require.NoError(t, p.Close(), "waits for the sender")
			require.Zero(t, direct.Exists(t.Context(), topic).Val())
		})
	}
}
