package tests

import (
	"context"
	"io"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
	"github.com/flaminco/redischannels/schedule"
	"github.com/flaminco/redischannels/sse"
)

// blockage is code of the application that does not return before the end of a test.
type blockage struct {
	entered, over chan struct{}
	once          sync.Once
	provider      *redistest.Credentials
}

func (b *blockage) enter() {
	b.once.Do(func() { close(b.entered) })
	<-b.over
}

// hook returns a hook of a client that blocks in a command.
func (b *blockage) hook(command string) redis.Hook {
	return redistest.Before(command, func(context.Context, redis.Cmder) error {
		b.enter()
		return nil
	})
}

// blockedMarshaler blocks where a message is made of an entry.
type blockedMarshaler struct {
	redischannels.WatermillMarshaler
	*blockage
}

func (m blockedMarshaler) Unmarshal(redischannels.Entry) (*message.Message, error) {
	m.enter()
	return nil, io.EOF
}

// blockedCloses are what is closed while code of the application blocks. Each returns it, and by what time
// Close is to give up.
var blockedCloses = map[string]func(t *testing.T, b *blockage) (io.Closer, time.Duration){
	"publisher, hook": func(t *testing.T, b *blockage) (io.Closer, time.Duration) {
		client := redistest.Shared(t).Client(t, func(o *redis.Options) {
			o.ReadTimeout, o.WriteTimeout = 400*time.Millisecond, 400*time.Millisecond // below Timeout: else hooks are not called
		})
		p := newTestPublisher(t, client, pubTimeout(time.Second))
		pubWarm(t, p)
		client.AddHook(b.hook("xadd"))
		background(t, func() { _ = p.Publish(redistest.Key(t), pubMessages("m", 1)...) })
		return p, 6 * time.Second
	},
	"pub/sub publisher, hook": func(t *testing.T, b *blockage) (io.Closer, time.Duration) {
		client := redistest.Shared(t).Client(t)
		p := newPubSubPub(t, client, func(c *redischannels.PubSubPublisherConfig) { c.Timeout = time.Second })
		require.NoError(t, p.Publish(redistest.Key(t), pubMessages("m", 1)...))
		client.AddHook(b.hook("publish"))
		background(t, func() { _ = p.Publish(redistest.Key(t), pubMessages("m", 1)...) })
		return p, time.Second
	},
	"group, hook": func(t *testing.T, b *blockage) (io.Closer, time.Duration) {
		client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
		sub := newSub(t, client)
		messages := sub.subscribe(t, topic)
		client.AddHook(b.hook("xack"))
		publish(t, client, topic, "a")
		receive(t, messages).Ack()
		return sub, 2 * time.Second
	},
	"group, unmarshaler": func(t *testing.T, b *blockage) (io.Closer, time.Duration) {
		client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
		sub := newSub(t, client, func(c *redischannels.SubscriberConfig) { c.Unmarshaler = blockedMarshaler{blockage: b} })
		sub.subscribe(t, topic)
		publish(t, client, topic, "a")
		return sub, 2 * time.Second
	},
	"group, ordering key": func(t *testing.T, b *blockage) (io.Closer, time.Duration) {
		client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
		sub := newSub(t, client, func(c *redischannels.SubscriberConfig) {
			c.MaxInFlight = 2
			c.OrderingKey = func(*message.Message) string {
				b.enter()
				return ""
			}
		})
		sub.subscribe(t, topic)
		publish(t, client, topic, "a")
		return sub, 2 * time.Second
	},
	"fan-out, credentials": func(t *testing.T, b *blockage) (io.Closer, time.Duration) {
		client, admin := blockedCredentials(t, b)
		sub := newSub(t, client, fanOut)
		sub.subscribe(t, redistest.Key(t))
		b.begin(t, admin)
		return sub, 2 * time.Second
	},
	"pub/sub, credentials": func(t *testing.T, b *blockage) (io.Closer, time.Duration) {
		client, admin := blockedCredentials(t, b)
		sub := newPubSub(t, client)
		sub.subscribe(t, redistest.Key(t))
		b.begin(t, admin)
		return sub, 2 * time.Second
	},
	"reader, hook": func(t *testing.T, b *blockage) (io.Closer, time.Duration) {
		hub := newHubOf(t)
		channel := streamOf[int](t, hub, redistest.Key(t))
		readBlocked(t, hub.client.(*redis.Client), channel, b)
		return channel.Reader(), 2 * time.Second
	},
	"hub, hook": func(t *testing.T, b *blockage) (io.Closer, time.Duration) {
		client := redistest.Shared(t).Client(t)
		config := redischannels.HubConfig{Logger: watermill.NopLogger{}}
		config.Stream.Publisher.Timeout = time.Second
		config.Stream.Subscriber = redischannels.SubscriberConfig{ConsumerGroup: "g", Tuning: quickTuning()}
		hub, err := redischannels.NewHub(client, config)
		require.NoError(t, err)
		channel, err := redischannels.NewStreamChannel[int](hub, redistest.Key(t), redischannels.StreamChannelConfig{})
		require.NoError(t, err)
		readBlocked(t, client, channel, b)
		return hub, 8 * time.Second
	},
	"server-sent events, function of the application": func(t *testing.T, b *blockage) (io.Closer, time.Duration) {
		hub := newHubOf(t)
		channel := streamOf[int](t, hub, redistest.Key(t))
		handler := newSSE(t, channel, sse.Options[int]{Event: func(redischannels.Delivery[int]) string {
			b.enter()
			return ""
		}})
		stream := openSSE(t, serveSSE(t, handler))
		require.Equal(t, http.StatusOK, stream.resp.StatusCode)
		write(t, channel, 1)
		return handler, 0
	},
	"schedules, hook": func(t *testing.T, b *blockage) (io.Closer, time.Duration) {
		client := redistest.Shared(t).Client(t)
		schedules := newSchedules(t, client, redistest.Key(t))
		client.AddHook(b.hook("evalsha"))
		background(t, func() {
			_, _ = schedules.Put(t.Context(), schedule.Schedule{ID: "a", At: time.Now().Add(time.Hour), Message: tickMessage("a")})
		})
		return schedules, 0
	},
	"housekeeper, hook": func(t *testing.T, b *blockage) (io.Closer, time.Duration) {
		client := redistest.Shared(t).Client(t)
		keeper, err := redischannels.NewHousekeeper(redischannels.HousekeeperConfig{Client: client, Topics: []string{redistest.Key(t)}}, nil)
		require.NoError(t, err)
		client.AddHook(b.hook("evalsha"))
		background(t, func() { _ = keeper.Run(t.Context()) })
		return keeper, 0
	},
}

// background runs a call of the application that a test does not wait for before its end.
func background(t *testing.T, call func()) {
	var calls sync.WaitGroup
	calls.Go(call)
	t.Cleanup(calls.Wait)
}

func blockedCredentials(t *testing.T, b *blockage) (*redis.Client, *redis.Client) {
	server := redistest.Start(t, redistest.WithACL("app on >secret ~* &* +@all"))
	provider := redistest.NewCredentials("app", "secret")
	b.provider = provider
	return server.Client(t, provider.Option), server.Admin(t)
}

// begin has all connections log in again.
func (b *blockage) begin(t *testing.T, admin *redis.Client) {
	b.provider.Asked(func() error {
		b.enter()
		return nil
	})
	require.NoError(t, admin.ClientKillByFilter(t.Context(), "user", "app").Err())
}

func readBlocked(t *testing.T, client *redis.Client, channel *redischannels.Channel[int], b *blockage) {
	write(t, channel, 1)
	delivery, err := channel.Reader().Receive(soonCtx(t))
	require.NoError(t, err)
	client.AddHook(b.hook("xack"))
	require.NoError(t, delivery.Ack())
}

// A hook, a provider of credentials, a marshaler or another function of the application that never returned
// held up Close for ever. It stops waiting, says so, and completes when that has returned.
func TestClose_BlockedApplication(t *testing.T) {
	t.Parallel()
	closes := make(map[string]func())
	for name, begin := range blockedCloses {
		b := &blockage{entered: make(chan struct{}), over: make(chan struct{})}
		unblock := sync.OnceFunc(func() { close(b.over) })
		closer, own := begin(t, b)
		t.Cleanup(unblock) // before what begin cleans up
		select {
		case <-b.entered:
		case <-time.After(soon):
			require.FailNow(t, "nothing blocks", name)
		}
		closes[name] = func() {
			begun := time.Now()
			assert.ErrorIs(t, closer.Close(), redischannels.ErrCloseTimeout, name)
			assert.InDelta(t, own+20*time.Second, time.Since(begun), float64(5*time.Second), name)
			unblock()
			err := closer.Close()
			assert.Less(t, time.Since(begun), own+30*time.Second, name)
			if name != "hub, hook" { // which keeps the error of its channels
				assert.NoError(t, err, name)
			}
		}
	}
	var closing sync.WaitGroup // all at once: each takes more than 20 s
	for _, f := range closes {
		closing.Go(f)
	}
	closing.Wait()
}
