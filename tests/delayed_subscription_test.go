package tests

import (
	"fmt"
	"net/url"
	"os"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// delayerChild is a process that delays a message of CHILD_TOPIC at CHILD_URL by half a second. It
// says "stored" and waits for its end.
var delayerChild = redistest.ChildMain("delayer", func() {
	options, err := redis.ParseURL(os.Getenv("CHILD_URL"))
	if err == nil {
		var p *redischannels.Publisher
		p, err = redischannels.NewPublisher(redischannels.PublisherConfig{Client: redis.NewClient(options)}, nil)
		if err == nil {
			err = p.Publish(os.Getenv("CHILD_TOPIC"), delayedFor(500*time.Millisecond, pubMessages("m", 1)...)...)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("stored")
	select {}
})

// scanEvery sets ClaimInterval.
func scanEvery(interval time.Duration) func(*redischannels.SubscriberConfig) {
	return tuned(func(c *redischannels.Tuning) { c.ClaimInterval = interval })
}

// storeAndClose delays a message by a Publisher that is closed then.
func storeAndClose(t *testing.T, client redis.UniversalClient, topic string, d time.Duration) {
	t.Helper()
	p, err := redischannels.NewPublisher(redischannels.PublisherConfig{Client: client}, nil)
	require.NoError(t, err)
	require.NoError(t, p.Publish(topic, delayedFor(d, pubMessages("m", 1)...)...))
	require.NoError(t, p.Close())
}

// requireLateness checks that the only message of the topic was appended in time, or late by a scan
// at most.
func requireLateness(t *testing.T, client redis.UniversalClient, topic string, due time.Time, interval time.Duration) {
	t.Helper()
	entries := client.XRange(t.Context(), topic, "-", "+").Val()
	require.Len(t, entries, 1, "it is appended once")
	lateness := entryTime(t, entries[0].ID).Sub(due)
	require.Greater(t, lateness, -time.Second, "it is not early")
	require.Less(t, lateness, interval+interval/10+time.Second, "at most a ClaimInterval, its jitter, and what a loaded machine takes")
}

// The process that has delayed a message dies, and no other one knows of it.
func TestDelayed_SubscriptionFindsWhatADeadProcessHasStored(t *testing.T) {
	t.Parallel()
	const interval = time.Second
	server := redistest.Start(t)
	client, topic := server.Client(t), redistest.Key(t)
	sub := newSub(t, client, scanEvery(interval))
	messages := sub.subscribe(t, topic)
	address := url.URL{Scheme: "redis", Host: server.Options().Addr}
	child := redistest.StartChild(t, delayerChild, "CHILD_URL="+address.String(), "CHILD_TOPIC="+topic)
	child.WaitLine("stored", soon)
	due := time.Now().Add(500 * time.Millisecond)
	child.Kill()
	require.EqualValues(t, 1, client.ZCard(t.Context(), delayKeys(topic)[1]).Val(), "it is not due when its process dies")
	require.Equal(t, []string{"payload"}, receiveAcked(t, messages, 1))
	requireLateness(t, client, topic, due, interval)
	eventuallyNoDelays(t, client, topic)
	sub.closeSoon(t)
	require.NoError(t, firstError(sub.events))
}

func TestDelayed_SubscriptionInACluster(t *testing.T) {
	t.Parallel()
	const interval = time.Second
	cluster := redistest.StartCluster(t, 3)
	client, topic := cluster.Client(t), redistest.Key(t)
	messages := newSub(t, client, scanEvery(interval)).subscribe(t, topic)
	storeAndClose(t, cluster.Client(t), topic, 500*time.Millisecond)
	due := time.Now().Add(500 * time.Millisecond)
	require.Equal(t, []string{"payload"}, receiveAcked(t, messages, 1))
	requireLateness(t, client, topic, due, interval)
}

// A subscription that holds all that it may does not claim, but looks for what is due.
func TestDelayed_SubscriptionWithoutRoom(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	topic := redistest.Key(t)
	messages := newSub(t, client, inFlight(1), func(c *redischannels.SubscriberConfig) { c.Tuning.Prefetch = redischannels.NoPrefetch }).subscribe(t, topic)
	publish(t, client, topic, "held")
	msg := receive(t, messages)
	storeAndClose(t, redistest.Shared(t).Client(t), topic, 100*time.Millisecond)
	redistest.Eventually(t, soon, func() bool { return client.XLen(t.Context(), topic).Val() == 2 }, "it is appended")
	msg.Ack()
	require.Equal(t, []string{"payload"}, receiveAcked(t, messages, 1))
}

// The data of a scan costs no command as long as nothing is due.
func TestDelayed_IdleSubscriptionSendsNothingMore(t *testing.T) {
	t.Parallel()
	scripts := func(topic string) int {
		client, hook := redistest.Shared(t).Client(t), redistest.NewHook()
		client.AddHook(hook)
		newSub(t, client, scanEvery(time.Hour)).subscribe(t, topic)
		<-time.After(quiet)
		return hook.Count("evalsha")
	}
	topic := redistest.Key(t, "later")
	storeAndClose(t, redistest.Shared(t).Client(t), topic, time.Hour)
	require.Equal(t, scripts(redistest.Key(t, "nothing")), scripts(topic), "nothing is due for an hour")
}

// A topic of which no side key can be made is read in a group where the configuration names them,
// and what is delayed and dead lies under that name.
func TestDelayed_SubscriptionWithSideKeys(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	topic, base := redistest.Key(t)+"}", redistest.Key(t, "base")
	side := func(string) string { return base }
	p, err := redischannels.NewPublisher(redischannels.PublisherConfig{Client: redistest.Shared(t).Client(t), SideKeys: side}, nil)
	require.NoError(t, err)
	require.NoError(t, p.Publish(topic, delayedFor(100*time.Millisecond, pubMessages("m", 1)...)...))
	require.NoError(t, p.Close())
	sub := newSub(t, client, deliveries(1), scanEvery(10*time.Millisecond), func(c *redischannels.SubscriberConfig) { c.SideKeys = side })
	receive(t, sub.subscribe(t, topic)).Nack()
	sub.events.wait(t, redischannels.EventDeadLettered)
	require.Equal(t, int64(1), client.XLen(t.Context(), base+":dead").Val())
	require.NoError(t, client.Del(t.Context(), topic).Err())
}

// The side keys of a hub are those of its channels in both directions.
func TestDelayed_SideKeysOfAHub(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	topic, base := redistest.Key(t)+"}", redistest.Key(t, "base")
	hub, err := redischannels.NewHub(client, redischannels.HubConfig{SideKeys: func(string) string { return base }})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, hub.Close()) })
	orders, err := redischannels.NewStreamChannel[order](hub, topic, redischannels.StreamChannelConfig{
		Subscriber: redischannels.SubscriberConfig{ConsumerGroup: "g"},
	})
	require.NoError(t, err)
	_, err = orders.Writer().WriteAfter(t.Context(), time.Millisecond, order{ID: 1})
	require.NoError(t, err)
	require.NoError(t, receiveValue(t, orders).Reject("no"))
	require.Equal(t, topic, client.HGet(t.Context(), base+":control", "topic").Val())
	redistest.Eventually(t, soon, func() bool {
		found, _ := deadValues(t, orders, redischannels.DeadLetterQuery{})
		return len(found) == 1
	}, "it is a dead letter")
	require.Equal(t, int64(1), client.XLen(t.Context(), base+":dead").Val())
	require.NoError(t, client.Del(t.Context(), topic).Err())
}

// A key of another type in the place of a due set is an event, and claims nothing less.
func TestDelayed_DueSetOfAnotherType(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	topic := redistest.Key(t)
	publish(t, client, topic, "left")
	deliverTo(t, client, topic, "dead", 1, time.Hour)
	due := delayKeys(topic)[1]
	require.NoError(t, client.Set(t.Context(), due, "text", 0).Err())
	sub := newSub(t, client)
	require.Equal(t, []string{"left"}, receiveAcked(t, sub.subscribe(t, topic), 1))
	event := sub.events.wait(t, redischannels.EventError)
	require.ErrorIs(t, event.Err, redischannels.ErrWrongType)
	require.Equal(t, topic, event.Topic)
	require.NoError(t, client.Del(t.Context(), due).Err())
}
