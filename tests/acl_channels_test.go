package tests

import (
	"context"
	"fmt"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
)

// aclWaitToWrite waits for a group for which Redis reports no lag, and writes.
func aclWaitToWrite(t *testing.T, admin, client *redis.Client, topic string) error {
	t.Helper()
	ids := publish(t, admin, topic, numbered(10)...)
	deliverTo(t, admin, topic, "c", 7, 0)
	require.NoError(t, admin.XDel(t.Context(), topic, ids[8]).Err())
	writer := streamOf[int](t, newHub(t, client), topic, redischannels.StreamChannelConfig{MaxLag: 5, MaxLen: 100}).Writer()
	if err := writer.WaitToWrite(t.Context()); err != nil {
		return err
	}
	if _, err := writer.Write(t.Context(), 1); err != nil {
		return err
	}
	_, err := writer.WriteAll(t.Context(), 2, 3)
	return err
}

// aclFollow does what a handler of sse does for its clients.
func aclFollow(t *testing.T, admin, client *redis.Client, topic string) error {
	t.Helper()
	mine := streamOf[int](t, newHub(t, admin), topic, noGroup)
	write(t, mine, 1, 2)
	hub := newHub(t, client)
	reader := streamOf[int](t, hub, topic, noGroup).Reader()
	var seen []int
	for d, err := range reader.History(t.Context(), redischannels.Oldest) {
		if err != nil {
			return err
		}
		seen = append(seen, d.Value)
	}
	for d, err := range reader.Follow(t.Context(), redischannels.Oldest) {
		if err != nil {
			return err
		}
		if seen = append(seen, d.Value); d.Value == 2 {
			write(t, mine, 3)
		}
		if d.Value == 3 {
			break
		}
	}
	require.Equal(t, []int{1, 2, 1, 2, 3}, seen)
	return firstError(hub.events)
}

func aclPubSubPublish(t *testing.T, client *redis.Client, topic string, change ...func(*redischannels.PubSubPublisherConfig)) error {
	t.Helper()
	pub := newPubSubPub(t, client, change...)
	for _, n := range []int{1, 3} {
		if err := pub.Publish(topic+":a", pubMessages("m", n)...); err != nil {
			return err
		}
	}
	return nil
}

// aclPubSubSubscribe subscribes to two names and ends one of the subscriptions. count is the
// command that reports who is subscribed to that one.
func aclPubSubSubscribe(t *testing.T, admin, client *redis.Client, names [2]string, count string, change func(*redischannels.PubSubSubscriberConfig)) error {
	t.Helper()
	sub := newPubSub(t, client, change)
	kept, err := sub.Subscribe(t.Context(), names[0])
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended, err := sub.Subscribe(ctx, names[1])
	if err != nil {
		return err
	}
	subscribed := func() any { // a number of patterns, or the name and its number
		args := []any{"pubsub", count, names[1]}
		if count == "numpat" {
			args = args[:2]
		}
		reply, err := admin.Do(t.Context(), args...).Result()
		require.NoError(t, err)
		return fmt.Sprint(reply)
	}
	before := subscribed()
	cancel()
	waitClosed(t, ended)
	if err := aclEvent(sub.events, func() bool { return subscribed() != before }); err != nil {
		return err
	}
	say(t, newPubSubPub(t, admin, func(c *redischannels.PubSubPublisherConfig) { c.Sharded = count == "shardnumsub" }), names[0], "m")
	require.Equal(t, []string{"m"}, receiveAcked(t, kept, 1))
	sub.closeSoon(t)
	return firstError(sub.events)
}
