package tests

import (
	"context"
	"net/url"
	"slices"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// testFirstUse has a process store a message and die. Only what use does with a client, which appends some
// messages, can find it.
func testFirstUse(t *testing.T, appended int64, use func(client redis.UniversalClient, topic string)) {
	server := redistest.Start(t)
	direct, topic := server.Client(t), redistest.Key(t)
	address := url.URL{Scheme: "redis", Host: server.Options().Addr}
	child := redistest.StartChild(t, delayerChild, "CHILD_URL="+address.String(), "CHILD_TOPIC="+topic)
	child.WaitLine("stored", soon)
	child.Kill()
	require.EqualValues(t, 1, direct.ZCard(t.Context(), delayKeys(topic)[1]).Val(), "it is not due when its process dies")
	use(server.Client(t), topic)
	eventuallyNoDelays(t, direct, topic)
	require.EqualValues(t, appended+1, direct.XLen(t.Context(), topic).Val())
}

// A topic with a Publisher alone, which delays nothing itself.
func TestDelayed_PublisherFindsWhatADeadProcessHasStored(t *testing.T) {
	t.Parallel()
	testFirstUse(t, 1, func(client redis.UniversalClient, topic string) {
		require.NoError(t, newTestPublisher(t, client).Publish(topic, pubMessages("plain", 1)...))
	})
}

func TestDelayed_FanOutFindsWhatADeadProcessHasStored(t *testing.T) {
	t.Parallel()
	testFirstUse(t, 0, func(client redis.UniversalClient, topic string) {
		newSub(t, client, fanOut).subscribe(t, topic)
	})
}

// A topic costs one command, however often and by whatever it is used.
func TestDelayed_FirstUseLooksOnce(t *testing.T) {
	t.Parallel()
	client, topic, second := redistest.Shared(t).Client(t), redistest.Key(t), redistest.Key(t, "second")
	looks := make(chan struct{}, 100)
	client.AddHook(redistest.Before("zrange", func(_ context.Context, cmd redis.Cmder) error {
		if slices.Contains(cmd.Args(), any(delayKeys(topic)[1])) || slices.Contains(cmd.Args(), any(delayKeys(second)[1])) {
			looks <- struct{}{}
		}
		return nil
	}))
	p, other := newTestPublisher(t, client), newTestPublisher(t, client)
	for range 10 {
		require.NoError(t, p.Publish(topic, pubMessages("m", 1)...))
		require.NoError(t, other.Publish(topic, pubMessages("m", 2)...))
	}
	newSub(t, client, fanOut).subscribe(t, topic)
	require.NoError(t, p.Publish(second, pubMessages("m", 1)...))
	for range 2 {
		select {
		case <-looks:
		case <-time.After(soon):
			require.Fail(t, "no look")
		}
	}
	require.NoError(t, p.Publish(topic, pubMessages("m", 1)...))
	require.NoError(t, p.Publish(second, pubMessages("m", 1)...))
	<-time.After(quiet)
	require.Empty(t, looks)
}

func firstLook(topic string) redistest.Match {
	return redistest.And(redistest.Contains("zrange"), redistest.Contains(delayKeys(topic)[1]))
}

// A server that does not answer the check delays neither Publish nor another topic's.
func TestDelayed_FirstUseDelaysNothing(t *testing.T) {
	t.Parallel()
	proxy, client, direct := pubProxy(t, func(o *redis.Options) { o.ReadTimeout = 2 * time.Second })
	topic, other := redistest.Key(t), redistest.Key(t, "other")
	storeAndClose(t, direct, topic, time.Millisecond)
	held, release := make(chan struct{}), make(chan struct{})
	defer close(release)
	proxy.BeforeReply(1, firstLook(topic), func() { close(held); <-release })
	p, err := redischannels.NewPublisher(redischannels.PublisherConfig{Client: client}, nil)
	require.NoError(t, err)
	require.NoError(t, p.Publish(topic, pubMessages("a", 1)...))
	<-held
	require.NoError(t, within(t, func() error {
		if err := p.Publish(topic, pubMessages("b", 1)...); err != nil {
			return err
		}
		return p.Publish(other, pubMessages("c", 1)...)
	}))
	require.NoError(t, within(t, p.Close), "the connection that waits for the check is closed")
}

// A check whose request or reply is lost is made again.
func TestDelayed_FirstUseWhileTheConnectionIsCut(t *testing.T) {
	t.Parallel()
	proxy, client, direct := pubProxy(t)
	topic := redistest.Key(t)
	storeAndClose(t, direct, topic, 100*time.Millisecond)
	looks, moves := proxy.DropRequest(5, firstLook(topic)), proxy.DropReply(2, moveScript(topic)) // the client repeats a check three times
	require.NoError(t, newTestPublisher(t, client).Publish(topic, pubMessages("a", 1)...))
	looks.Wait(t, soon)
	moves.Wait(t, soon)
	eventuallyNoDelays(t, direct, topic)
	require.EqualValues(t, 2, direct.XLen(t.Context(), topic).Val())
}

// The permissions of publishing and of reading without a group do not suffice for the check, and need not.
func TestDelayed_FirstUseWithoutThePermission(t *testing.T) {
	t.Parallel()
	rules := documentedRules(t)
	rules["looking-publisher"] = append(slices.Clone(rules["publisher"]), "~"+delayKeys("orders")[1], "+zrange", "+evalsha", "+eval")
	publish := func(t *testing.T, client redis.UniversalClient, logger watermill.LoggerAdapter, topic string) func() error {
		p, err := redischannels.NewPublisher(redischannels.PublisherConfig{Client: client}, logger)
		require.NoError(t, err)
		require.NoError(t, p.Publish(topic, pubMessages("m", 1)...))
		return p.Close
	}
	for user, use := range map[string]func(*testing.T, redis.UniversalClient, watermill.LoggerAdapter, string) func() error{
		"publisher": publish, "looking-publisher": publish,
		"reader": func(t *testing.T, client redis.UniversalClient, logger watermill.LoggerAdapter, topic string) func() error {
			sub := newLoggedSub(t, client, logger, fanOut)
			sub.subscribe(t, topic)
			t.Cleanup(func() { require.Empty(t, sub.events.seen) })
			return sub.Close
		},
	} {
		t.Run(user, func(t *testing.T) {
			t.Parallel()
			server := redistest.Start(t)
			admin := server.Admin(t)
			args := []any{"acl", "setuser", user}
			for _, word := range rules[user] {
				args = append(args, word)
			}
			require.NoError(t, admin.Do(t.Context(), args...).Err())
			const topic = "orders" // as in the rules
			storeAndClose(t, admin, topic, time.Hour)
			require.NoError(t, admin.ZAdd(t.Context(), delayKeys(topic)[1], redis.Z{Member: "due", Score: 1}).Err())
			logged := errorLog{errs: make(chan error, 1)}
			end := use(t, server.Client(t, redistest.As(user, "change-me")), logged, topic)
			refused := func() (n int64) {
				entries, err := admin.ACLLog(t.Context(), 10).Result()
				require.NoError(t, err)
				for _, e := range entries {
					if e.Object == "zrange" || e.Object == delayKeys(topic)[1] || e.Object == delayKeys(topic)[0] {
						n += e.Count
					}
				}
				return n
			}
			redistest.Eventually(t, soon, func() bool { return refused() == 1 }, "a check")
			<-time.After(quiet)
			require.EqualValues(t, 1, refused(), "it is not tried again")
			require.NoError(t, end())
			require.Empty(t, logged.errs)
			require.EqualValues(t, 2, admin.ZCard(t.Context(), delayKeys(topic)[1]).Val())
		})
	}
}

// A topic without side keys is published to and read without a group as before.
func TestDelayed_FirstUseWithoutSideKeys(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)+"}"
	logged := errorLog{errs: make(chan error, 1)}
	sub := newLoggedSub(t, client, logged, fanOut)
	messages := sub.subscribe(t, topic)
	p := newTestPublisher(t, client, func(c *redischannels.PublisherConfig) { c.Marshaler = nil })
	require.NoError(t, p.Publish(topic, pubMessages("m", 1)...))
	require.Equal(t, []string{"payload"}, receiveAcked(t, messages, 1))
	panicking := newTestPublisher(t, client, func(c *redischannels.PublisherConfig) { c.SideKeys = func(string) string { panic("of SideKeys") } })
	require.NoError(t, panicking.Publish(redistest.Key(t, "other"), pubMessages("m", 1)...))
	sub.closeSoon(t)
	require.Empty(t, sub.events.seen)
	require.Empty(t, logged.errs)
}
