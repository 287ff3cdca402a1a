package tests

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// from sets StartFrom.
func from(p redischannels.Position) func(*redischannels.SubscriberConfig) {
	return func(c *redischannels.SubscriberConfig) { c.StartFrom = p }
}

// onReads puts a hook into every client that is opened for blocking reads.
func onReads(h redis.Hook) func(*redischannels.SubscriberConfig) {
	return func(c *redischannels.SubscriberConfig) {
		c.OnReadClient = func(client *redis.Client) { client.AddHook(h) }
	}
}

// arg returns the argument that follows a word of a command, such as COUNT.
func arg(cmd redis.Cmder, word string) (string, bool) {
	args := cmd.Args()
	for i := 0; i+1 < len(args); i++ {
		if strings.EqualFold(fmt.Sprint(args[i]), word) {
			return fmt.Sprint(args[i+1]), true
		}
	}
	return "", false
}

// A new group misses the backlog or replays everything, without being asked.
func TestSubscriber_StartFrom(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	before := []string{"a", "b", "c"}
	for name, test := range map[string]struct {
		start func(ids []string) redischannels.Position
		want  []string
	}{
		"default":           {func([]string) redischannels.Position { return "" }, before},
		"Oldest":            {func([]string) redischannels.Position { return redischannels.Oldest }, before},
		"Latest":            {func([]string) redischannels.Position { return redischannels.Latest }, nil},
		"AfterID":           {func(ids []string) redischannels.Position { return redischannels.AfterID(ids[0]) }, before[1:]},
		"after the last ID": {func(ids []string) redischannels.Position { return redischannels.AfterID(ids[2]) }, nil},
		"Since":             {func([]string) redischannels.Position { return redischannels.Since(time.Now().Add(-time.Hour)) }, before},
		"Since later":       {func([]string) redischannels.Position { return redischannels.Since(time.Now().Add(time.Hour)) }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			topic := redistest.Key(t)
			start := test.start(publish(t, client, topic, before...))
			messages := newSub(t, client, from(start)).subscribe(t, topic)
			groups, err := client.XInfoGroups(t.Context(), topic).Result()
			require.NoError(t, err)
			require.Len(t, groups, 1, "the group exists when Subscribe returns")
			require.Equal(t, test.want, nilIfEmpty(receiveAcked(t, messages, len(test.want))))
			publish(t, client, topic, "d")
			if name == "Since later" { // than that, too
				noMessage(t, messages)
				return
			}
			require.Equal(t, []string{"d"}, receiveAcked(t, messages, 1))
		})
	}

	t.Run("an existing group continues", func(t *testing.T) {
		t.Parallel()
		topic := redistest.Key(t)
		publish(t, client, topic, before...)
		first := newSub(t, client)
		require.Equal(t, before, receiveAcked(t, first.subscribe(t, topic), 3))
		first.closeSoon(t)
		publish(t, client, topic, "d")
		messages := newSub(t, client, from(redischannels.Latest)).subscribe(t, topic)
		require.Equal(t, []string{"d"}, receiveAcked(t, messages, 1))
	})
}

func nilIfEmpty(s []string) []string {
	if len(s) == 0 {
		return nil
	}
	return s
}

// `$` is resolved by a goroutine after Subscribe has returned, so what is published
// right after it is lost (50 of 50).
func TestSubscriber_NothingIsLostRightAfterSubscribe(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	for name, change := range map[string]func(*redischannels.SubscriberConfig){
		"fan-out": fanOut,
		"group":   from(redischannels.Latest),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			topic := redistest.Key(t)
			for n := range 50 {
				sub := newSub(t, client, change, func(c *redischannels.SubscriberConfig) {
					if c.ConsumerGroup != "" {
						c.ConsumerGroup = fmt.Sprint("g", n)
					}
				})
				topic := topic
				if n%2 == 1 { // every other time the stream does not exist yet
					topic = redistest.Key(t)
				}
				messages := sub.subscribe(t, topic)
				payload := fmt.Sprint(n)
				publish(t, client, topic, payload)
				require.Equal(t, []string{payload}, receiveAcked(t, messages, 1))
				sub.closeSoon(t)
			}
		})
	}
}

// Between two reads with `$` everything is lost until the first message has arrived.
func TestFanOut_NothingIsLostBetweenReads(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	topic := redistest.Key(t)
	publish(t, client, topic, "before")

	const total = 5
	published := 0
	dollars := 0
	hook := redistest.After("xread", func(_ context.Context, cmd redis.Cmder) error {
		if _, blocking := arg(cmd, "BLOCK"); !blocking {
			return nil
		}
		if last, _ := arg(cmd, topic); last == "$" {
			dollars++
		}
		reply := string(cmd.(interface{ Val() []byte }).Val())
		empty := reply == "_\r\n" || reply == "*-1\r\n" // RESP3, RESP2
		if empty && published < total {
			publish(t, client, topic, fmt.Sprint(published))
			published++
		}
		return nil
	})
	sub := newSub(t, client, fanOut, onReads(hook), func(c *redischannels.SubscriberConfig) {
		c.Tuning.BlockTime = 20 * time.Millisecond
	})
	messages := sub.subscribe(t, topic)
	require.Equal(t, []string{"0", "1", "2", "3", "4"}, receiveAcked(t, messages, total))
	sub.closeSoon(t)
	require.Zero(t, dollars, "no blocking read asks for $")
}

// The first read has no COUNT: the whole stream goes through the network for one message.
func TestSubscriber_EveryReadIsBounded(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client(t)
	topic := redistest.Key(t)
	const entries = 20_000
	pipe := client.Pipeline()
	for range entries {
		pipe.XAdd(t.Context(), &redis.XAddArgs{Stream: topic, Values: []string{
			"_watermill_message_uuid", watermill.NewUUID(), "payload", strings.Repeat("x", 200)}})
	}
	_, err := pipe.Exec(t.Context())
	require.NoError(t, err)
	const most = 110 * 300 // a page of History, and what the commands around it answer

	counted := redistest.NewHook()
	var mu sync.Mutex
	var unbounded []string
	check := func(_ context.Context, cmd redis.Cmder) error {
		if _, ok := arg(cmd, "COUNT"); !ok {
			mu.Lock()
			defer mu.Unlock()
			unbounded = append(unbounded, cmd.String())
		}
		return nil
	}
	counted.Before("xread", check).Before("xreadgroup", check)
	for name, read := range map[string]func(t *testing.T) (done func()){
		"fan-out": func(t *testing.T) func() {
			sub := newSub(t, client, fanOut, from(redischannels.Oldest), onReads(counted))
			msg := receive(t, sub.subscribe(t, topic))
			return func() { msg.Ack() } // from here on more is fetched
		},
		"group": func(t *testing.T) func() {
			sub := newSub(t, client, onReads(counted))
			msg := receive(t, sub.subscribe(t, topic))
			return func() { msg.Ack() }
		},
		"history": func(t *testing.T) func() {
			sub := newSub(t, client)
			for _, err := range sub.History(t.Context(), topic, redischannels.Oldest, redischannels.Latest) {
				require.NoError(t, err)
				break
			}
			return func() {}
		},
	} {
		t.Run(name, func(t *testing.T) {
			redistest.ResetStats(t, client)
			done := read(t)
			require.Less(t, redistest.OutputBytes(t, client), most)
			done()
		})
	}
	require.Empty(t, unbounded)
}

// Replay skips 1-1 because it adds one to the wrong half of the ID, or reads an entry
// that cannot be decoded forever.
func TestSubscriber_ReplayIsExact(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	topic := redistest.Key(t)
	add := func(id string, fields ...string) {
		require.NoError(t, client.XAdd(t.Context(), &redis.XAddArgs{Stream: topic, ID: id, Values: fields}).Err())
	}
	add("1-0", "_watermill_message_uuid", "u", "payload", "one")
	add("1-1", "_watermill_message_uuid", "u", "payload", "two")
	add("1-2", "no", "message")
	add("2-0", "_watermill_message_uuid", "u", "payload", "three")

	t.Run("history", func(t *testing.T) {
		sub := newSub(t, client)
		var got []string
		for msg, err := range sub.History(t.Context(), topic, redischannels.AfterID("1-0"), redischannels.Latest) {
			var bad *redischannels.DecodeError
			if errors.As(err, &bad) {
				got = append(got, "bad "+bad.EntryID)
				continue
			}
			require.NoError(t, err)
			got = append(got, string(msg.Payload)+" "+entryIDOf(t, msg))
		}
		require.Equal(t, []string{"two 1-1", "bad 1-2", "three 2-0"}, got)
	})
	t.Run("subscription", func(t *testing.T) {
		reads := redistest.NewHook()
		sub := newSub(t, client, fanOut, onReads(reads))
		messages, err := sub.SubscribeFrom(t.Context(), topic, redischannels.AfterID("1-0"))
		require.NoError(t, err)
		require.Equal(t, []string{"two", "three"}, receiveAcked(t, messages, 2))
		noMessage(t, messages)
		bad := sub.events.of(redischannels.EventUndecodable)
		require.Len(t, bad, 1)
		require.Equal(t, []string{"1-2"}, bad[0].EntryIDs)
		require.Less(t, reads.Count("xread"), 10)
	})
}

// Between the end of a replay and the beginning of live reading entries are lost or
// delivered twice.
func TestSubscriber_ReplayContinuesIntoLive(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	topic := redistest.Key(t)
	const before, during = 1000, 2000
	var want []string
	for n := range before {
		want = append(want, fmt.Sprint(n))
	}
	publish(t, client, topic, want...)

	pub, err := redischannels.NewPublisher(redischannels.PublisherConfig{Client: client}, nil)
	require.NoError(t, err)
	t.Cleanup(func() { _ = pub.Close() })
	started := make(chan struct{})
	var publishing sync.WaitGroup
	publishing.Go(func() {
		for n := range during {
			if err := pub.Publish(topic, message.NewMessage(watermill.NewUUID(), []byte(fmt.Sprint(before+n)))); err != nil {
				t.Errorf("publish: %v", err)
				return
			}
			if n == 50 {
				close(started)
			}
		}
	})
	for n := range during {
		want = append(want, fmt.Sprint(before+n))
	}
	<-started
	sub := newSub(t, client, fanOut)
	messages, err := sub.SubscribeFrom(t.Context(), topic, redischannels.Oldest)
	require.NoError(t, err)
	require.Equal(t, want, receiveAcked(t, messages, before+during))
	noMessage(t, messages)
	publishing.Wait()
}

// A group with a misspelled name handled 1,000 old messages again without one line in the log.
func TestSubscriber_SubscribeIsLogged(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	publish(t, client, topic, numbered(3)...)
	lines := func(change ...func(*redischannels.SubscriberConfig)) []watermill.CapturedMessage {
		logger := watermill.NewCaptureLogger()
		sub := newLoggedSub(t, client, logger, change...)
		sub.subscribe(t, topic)
		require.NoError(t, sub.Close())
		return slices.DeleteFunc(logger.Captured()[watermill.InfoLogLevel], func(m watermill.CapturedMessage) bool {
			return !strings.HasPrefix(m.Msg, "Subscribed")
		})
	}
	first := lines(tuned(func(c *redischannels.Tuning) { c.Prefetch = redischannels.NoPrefetch }))
	require.Len(t, first, 1)
	require.Equal(t, "Subscribed: the consumer group was created", first[0].Msg)
	require.Equal(t, topic, first[0].Fields["topic"])
	require.Equal(t, "g", first[0].Fields["consumer_group"])
	require.Equal(t, redischannels.Oldest, first[0].Fields["from"])
	for _, field := range []string{"last_delivered", "pending", "lag", "consumer"} {
		require.Contains(t, first[0].Fields, field)
	}
	again := lines()
	require.Len(t, again, 1)
	require.Contains(t, again[0].Msg, "the consumer group exists")
	fanned := lines(fanOut)
	require.Len(t, fanned, 1)
	require.Equal(t, redischannels.Latest, fanned[0].Fields["from"])
}
