package tests

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// pubMarshaler writes the UUID and the payload, so that a test knows which
// messages a stream has without the wire format of the library.
type pubMarshaler struct{}

func (pubMarshaler) Marshal(_ string, msg *message.Message) ([]redischannels.Field, error) {
	return []redischannels.Field{{Name: "uuid", Value: []byte(msg.UUID)}, {Name: "payload", Value: msg.Payload}}, nil
}

// pubMarshalFunc is a marshaler that misbehaves.
type pubMarshalFunc func(*message.Message) ([]redischannels.Field, error)

func (f pubMarshalFunc) Marshal(_ string, msg *message.Message) ([]redischannels.Field, error) {
	return f(msg)
}

// newTestPublisher makes a publisher that is closed at the end of the test.
func newTestPublisher(t testing.TB, client redis.UniversalClient, change ...func(*redischannels.PublisherConfig)) *redischannels.Publisher {
	t.Helper()
	config := redischannels.PublisherConfig{Client: client, Marshaler: pubMarshaler{}}
	for _, c := range change {
		c(&config)
	}
	p, err := redischannels.NewPublisher(config, nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.Close()) })
	return p
}

// pubMessages makes n messages whose UUIDs are prefix0, prefix1, ...
func pubMessages(prefix string, n int) []*message.Message {
	msgs := make([]*message.Message, n)
	for i := range msgs {
		msgs[i] = message.NewMessage(fmt.Sprint(prefix, i), []byte("payload"))
	}
	return msgs
}

func pubUUIDs(msgs []*message.Message) []string {
	uuids := make([]string, len(msgs))
	for i, msg := range msgs {
		uuids[i] = msg.UUID
	}
	return uuids
}

// pubEntries returns the IDs and UUIDs of the stream.
func pubEntries(t testing.TB, client redis.UniversalClient, topic string) (ids, uuids []string) {
	t.Helper()
	entries, err := client.XRange(t.Context(), topic, "-", "+").Result()
	require.NoError(t, err)
	for _, e := range entries {
		ids = append(ids, e.ID)
		uuids = append(uuids, fmt.Sprint(e.Values["uuid"]))
	}
	return ids, uuids
}

// pubError returns the PublishError and checks what holds for each.
func pubError(t testing.TB, err error) *redischannels.PublishError {
	t.Helper()
	var pe *redischannels.PublishError
	require.ErrorAs(t, err, &pe)
	for i, r := range pe.Results {
		require.Equal(t, i, r.Index)
		confirmed := r.Outcome == redischannels.OutcomeAppended || r.Outcome == redischannels.OutcomeUnderReplicated
		require.Equal(t, confirmed, r.EntryID != "", "%+v", r)
		require.Equal(t, r.Outcome == redischannels.OutcomeAppended, r.Err == nil, "%+v", r)
		require.Equal(t, r.Outcome == redischannels.OutcomeUnknown, errors.Is(r.Err, redischannels.ErrOutcomeUnknown), "%+v", r)
	}
	return pe
}

// Messages were marshaled inside of the loop that sent them, so that those
// before an invalid one were already in the stream when Publish failed.
func TestPublisher_InvalidMessageSendsNothing(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	bad := errors.New("cannot be serialised")
	cases := map[string]struct {
		last   *message.Message
		marsh  pubMarshalFunc
		target error
		text   string
	}{
		"nil":       {last: nil, target: redischannels.ErrInvalidArgument, text: "message 2"},
		"error":     {marsh: func(*message.Message) ([]redischannels.Field, error) { return nil, bad }, target: bad, text: `UUID "last"`},
		"panic":     {marsh: func(*message.Message) ([]redischannels.Field, error) { panic("no codec") }, text: "no codec"},
		"no fields": {marsh: func(*message.Message) ([]redischannels.Field, error) { return nil, nil }, target: redischannels.ErrInvalidConfig, text: "no field"},
		"too large": {last: message.NewMessage("last", make([]byte, 2000)), target: redischannels.ErrTooLarge, text: "2015 bytes"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			topic := redistest.Key(t)
			p := newTestPublisher(t, client, func(conf *redischannels.PublisherConfig) {
				conf.MaxPayload = 1000
				conf.Marshaler = pubMarshalFunc(func(msg *message.Message) ([]redischannels.Field, error) {
					if msg.UUID == "last" && c.marsh != nil {
						return c.marsh(msg)
					}
					return pubMarshaler{}.Marshal("", msg)
				})
			})
			last := c.last
			if c.marsh != nil {
				last = message.NewMessage("last", nil)
			}
			err := p.Publish(topic, append(pubMessages("m", 2), last)...)
			pe := pubError(t, err)
			require.Equal(t, 3, pe.Count(redischannels.OutcomeNotAppended))
			require.ErrorContains(t, err, c.text)
			require.ErrorContains(t, err, "message 2")
			if c.target != nil {
				require.ErrorIs(t, err, c.target)
			}
			require.Zero(t, client.Exists(t.Context(), topic).Val())
		})
	}
}

// The constructor of the publisher wrote into the map of its caller.
func TestPublisher_ConstructorLeavesTheCallersMapAlone(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	topic := redistest.Key(t)
	retention := map[string]redischannels.Retention{topic: {MaxLen: 3, Exact: true}}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			newTestPublisher(t, client, func(c *redischannels.PublisherConfig) { c.TopicRetention = retention })
		})
	}
	wg.Wait()
	p := newTestPublisher(t, client, func(c *redischannels.PublisherConfig) { c.TopicRetention = retention })
	require.Equal(t, map[string]redischannels.Retention{topic: {MaxLen: 3, Exact: true}}, retention)
	delete(retention, topic)
	require.NoError(t, p.Publish(topic, pubMessages("m", 10)...))
	require.EqualValues(t, 3, client.XLen(t.Context(), topic).Val(), "the publisher must have its own copy")
}

// The IDs of Append belong to the messages in their order.
func TestPublisher_AppendReturnsTheIDs(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	topic := redistest.Key(t)
	p := newTestPublisher(t, client)
	var want []string
	for _, n := range []int{1, 2, 500, 1234} {
		ids, err := p.Append(t.Context(), topic, pubMessages(fmt.Sprint(n, "-"), n)...)
		require.NoError(t, err)
		require.Len(t, ids, n)
		want = append(want, ids...)
	}
	ids, uuids := pubEntries(t, client, topic)
	require.Equal(t, want, ids)
	require.Equal(t, pubUUIDs(pubMessages("1234-", 1234)), uuids[len(uuids)-1234:])

	ids, err := p.Append(t.Context(), topic)
	require.NoError(t, err)
	require.Empty(t, ids)
	require.NoError(t, p.Publish(topic))
}

// Without a transaction the entries of concurrent batches lie between each other,
// and what one caller publishes must stay in its order in any case.
func TestPublisher_BatchesAreContiguousAndCallersKeepTheirOrder(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	topic := redistest.Key(t)
	p := newTestPublisher(t, client)
	const writers, rounds, size = 8, 10, 20
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for r := range rounds {
				if err := p.Publish(topic, pubMessages(fmt.Sprintf("%d/%d/b", w, r), size)...); err != nil {
					t.Error(err)
				}
				if err := p.Publish(topic, pubMessages(fmt.Sprintf("%d/%d/s", w, r), 1)...); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	_, uuids := pubEntries(t, client, topic)
	require.Len(t, uuids, writers*rounds*(size+1))
	last := make(map[string]int) // writer -> what it published last
	for i := 0; i < len(uuids); {
		var w, r int
		var kind rune
		_, err := fmt.Sscanf(uuids[i], "%d/%d/%c", &w, &r, &kind)
		require.NoError(t, err)
		step := 2 * r
		if kind == 'b' {
			prefix := fmt.Sprintf("%d/%d/b", w, r)
			require.Equal(t, pubUUIDs(pubMessages(prefix, size)), uuids[i:i+size], "a batch lies together")
			i += size
		} else {
			step++
			i++
		}
		name := fmt.Sprint(w)
		require.Equal(t, last[name], step, "the order of writer %d", w)
		last[name] = step + 1
	}
}

// One call is one MULTI/EXEC; more than 500 messages, or a lot of bytes, are
// several.
func TestPublisher_OneTransactionPerBatch(t *testing.T) {
	t.Parallel()
	client := redistest.Start(t).Client(t)
	topic := redistest.Key(t)
	p := newTestPublisher(t, client)
	require.NoError(t, p.Publish(topic, pubMessages("warm", 2)...)) // asks once whether MULTI is allowed

	big := pubMessages("big", 6)
	for _, msg := range big {
		msg.Payload = make([]byte, 1<<20)
	}
	for _, c := range []struct {
		msgs []*message.Message
		exec int64
	}{{pubMessages("m", 2), 1}, {pubMessages("m", 500), 1}, {pubMessages("m", 502), 2}, {pubMessages("m", 1501), 3}, {big, 2}} {
		redistest.ResetStats(t, client)
		require.NoError(t, p.Publish(topic, c.msgs...))
		stats := redistest.CommandStats(t, client)
		require.Equal(t, c.exec, stats["exec"], "%d messages", len(c.msgs))
		require.Equal(t, c.exec, stats["multi"])
		require.EqualValues(t, len(c.msgs), stats["xadd"])
	}
}

// Each of 64 callers paid a round trip and a connection of its own.
func TestPublisher_ConcurrentCallersShareRoundTrips(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr())
	var trips atomic.Int64 // pipelines and single commands
	hook := &countingHook{trips: &trips}
	client := server.Client(t, redistest.Via(proxy))
	client.AddHook(hook)
	topic := redistest.Key(t)
	p := newTestPublisher(t, client)
	// A link of 2 ms makes the outcome independent of the speed of the machine.
	proxy.Delay(time.Millisecond)
	const callers, rounds = 64, 10
	var wg sync.WaitGroup
	for c := range callers {
		wg.Go(func() {
			for r := range rounds {
				if err := p.Publish(topic, pubMessages(fmt.Sprint(c, "/", r, "/"), 1)...); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	proxy.Delay(0)
	require.EqualValues(t, callers*rounds, server.Client(t).XLen(t.Context(), topic).Val())
	require.Less(t, trips.Load(), int64(callers*rounds/8))
	require.LessOrEqual(t, proxy.Accepted(), 8, "connections")
}

// With a small pool a publish failed with "connection pool timeout".
func TestPublisher_SmallPoolIsEnough(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	for size := 1; size <= 2; size++ {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			t.Parallel()
			client := server.Client(t, func(o *redis.Options) {
				o.PoolSize, o.MaxActiveConns, o.PipelinePoolSize = size, size, size
			})
			topic := redistest.Key(t)
			p := newTestPublisher(t, client)
			var wg sync.WaitGroup
			for c := range 32 {
				wg.Go(func() {
					for r := range 10 {
						if err := p.Publish(topic, pubMessages(fmt.Sprint(c, "/", r), 1+c%3)...); err != nil {
							t.Error(err)
						}
					}
				})
			}
			start := time.Now()
			require.NoError(t, client.Ping(t.Context()).Err())
			require.Less(t, time.Since(start), time.Second, "others use the pool at the same time")
			wg.Wait()
			require.EqualValues(t, 10*(11*1+11*2+10*3), client.XLen(t.Context(), topic).Val())
		})
	}
}

// Close closed the client of its caller.
// Publish and Close raced.
func TestPublisher_CloseLeavesTheClientOpen(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	goroutines := redistest.Goroutines(t)
	topic := redistest.Key(t)
	a, b := newTestPublisher(t, client), newTestPublisher(t, client)

	var wg sync.WaitGroup
	var confirmed atomic.Int64
	for c := range 16 {
		wg.Go(func() {
			for r := 0; ; r++ {
				n := 1 + c%2
				err := a.Publish(topic, pubMessages(fmt.Sprint(c, "/", r), n)...)
				if errors.Is(err, redischannels.ErrClosed) {
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
				confirmed.Add(int64(n))
			}
		})
	}
	redistest.Eventually(t, 10*time.Second, func() bool { return confirmed.Load() > 200 }, "publishing continues")
	for range 4 {
		wg.Go(func() {
			if err := a.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	goroutines.Wait(time.Second)
	require.EqualValues(t, confirmed.Load(), client.XLen(t.Context(), topic).Val(), "what was confirmed is there, and nothing else")

	_, err := a.Append(t.Context(), topic, pubMessages("late", 1)...)
	require.ErrorIs(t, err, redischannels.ErrClosed)
	require.NoError(t, a.Close())
	require.NoError(t, b.Publish(topic, pubMessages("b", 3)...), "the other publisher of the client")
	require.NoError(t, client.Ping(t.Context()).Err())
}

// The constructor must neither talk to Redis nor start anything.
func TestPublisher_ConstructorIsPassive(t *testing.T) {
	t.Parallel()
	goroutines := redistest.Goroutines(t)
	client := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"})
	defer client.Close()
	p, err := redischannels.NewPublisher(redischannels.PublisherConfig{Client: client}, watermill.NopLogger{})
	require.NoError(t, err)
	goroutines.Wait(0)
	require.NoError(t, p.Close())

	_, err = redischannels.NewPublisher(redischannels.PublisherConfig{}, nil)
	require.ErrorIs(t, err, redischannels.ErrInvalidConfig)
	ring := redis.NewRing(&redis.RingOptions{})
	defer ring.Close()
	_, err = redischannels.NewPublisher(redischannels.PublisherConfig{Client: ring}, nil)
	require.ErrorIs(t, err, redischannels.ErrUnsupportedClient)
}

// The default wire format reaches the stream as watermill-redisstream writes it.
func TestPublisher_UsesTheDefaultMarshaler(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	topic := redistest.Key(t)
	p := newTestPublisher(t, client, func(c *redischannels.PublisherConfig) { c.Marshaler = nil })
	msg := message.NewMessage("u", []byte("hello"))
	msg.Metadata.Set("k", "v")
	require.NoError(t, p.Publish(topic, msg))
	entries, err := client.XRange(t.Context(), topic, "-", "+").Result()
	require.NoError(t, err)
	require.Len(t, entries, 1)
	require.Equal(t, "u", entries[0].Values["_watermill_message_uuid"])
	require.Equal(t, "hello", entries[0].Values["payload"])
}

// The text of an error is for a log line: counts and causes, each once.
func TestPublisher_ErrorText(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	topic := redistest.Key(t)
	require.NoError(t, client.Set(t.Context(), topic, "x", 0).Err())
	p := newTestPublisher(t, client)
	secret := message.NewMessage("m", []byte("secret"))
	err := p.Publish(topic, append(slices.Repeat([]*message.Message{secret}, 400), pubMessages("m", 400)...)...)
	text := err.Error()
	require.Contains(t, text, "800 not appended of 800 messages")
	require.Equal(t, 1, strings.Count(text, "WRONGTYPE"), text)
	require.Less(t, len(text), 400, text)
	require.NotContains(t, text, "secret")
}

// Publishing through a channel starts a reader that steals the group's messages.
func TestPublisher_ReadsNothing(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client, topic := server.Client(t), redistest.Key(t)
	pub, err := redischannels.NewPublisher(redischannels.PublisherConfig{Client: client}, nil)
	require.NoError(t, err)
	for range 20 {
		require.NoError(t, pub.Publish(topic, message.NewMessage(watermill.NewUUID(), []byte("m"))))
	}
	require.NoError(t, pub.Close())
	for command, calls := range redistest.CommandStats(t, client) {
		name, _, _ := strings.Cut(command, "|")
		require.NotContains(t, []string{"xread", "xreadgroup", "xgroup", "xautoclaim", "xclaim", "xrange", "xpending", "xinfo", "eval", "evalsha"}, name, "%d calls", calls)
	}
}
