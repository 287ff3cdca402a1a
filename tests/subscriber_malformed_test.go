package tests

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// malformed are the names and values of entries that make no message.
var malformed = map[string][]string{
	"no UUID":        {"payload", "x"},
	"bad metadata":   {"_watermill_message_uuid", "u", "metadata", "\xc1 is no msgpack", "payload", "x"},
	"cut metadata":   {"_watermill_message_uuid", "u", "metadata", "\x81\xa1k", "payload", "x"},
	"foreign fields": {"id", "1", "amount", "5"},
	"empty names":    {"", ""},
	"1 MiB garbage":  {"garbage", strings.Repeat("\x00\xff", 1<<19)},
	"same name":      {"payload", "x", "payload", "y"},
}

// One malformed entry ends every subscription of the group, one after another
// (3 of 3); or it stays pending forever; or it is acknowledged and gone.
func TestSubscriber_MalformedEntriesBecomeDeadLetters(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	for name, change := range map[string]func(*redischannels.SubscriberConfig){
		"strict":    inFlight(1),
		"in flight": inFlight(16),
		"ordering key": func(c *redischannels.SubscriberConfig) {
			c.MaxInFlight = 16
			c.OrderingKey = func(msg *message.Message) string { return string(msg.Payload) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			topic := redistest.Key(t)
			raw := map[string][]string{} // by entry ID
			good := 0
			for _, fields := range malformed {
				publish(t, client, topic, fmt.Sprint(good))
				good++
				raw[addRaw(t, client, topic, fields...)] = fields
			}
			publish(t, client, topic, fmt.Sprint(good))
			good++

			var channels []<-chan *message.Message
			var subs []*testSub
			for range 3 {
				sub := newSub(t, client, change)
				subs = append(subs, sub)
				channels = append(channels, sub.subscribe(t, topic))
			}
			got := nackPoison(t, func(string) bool { return false }, channels...)
			redistest.Eventually(t, soon, func() bool { return got.ackedCount() == good }, "all good messages are handled")
			redistest.Eventually(t, soon, func() bool {
				return client.XLen(t.Context(), deadStream(topic)).Val() == int64(len(raw))
			}, "all bad entries are dead letters")
			eventuallyPending(t, client, topic, 0)

			for _, letter := range rawRange(t, client, deadStream(topic)) {
				own := len(letter.fields) - 14 // seven fields describe its death
				block := map[string]string{}
				for i := own; i < len(letter.fields); i += 2 {
					block[letter.fields[i]] = letter.fields[i+1]
				}
				id := block["_dead_entry_id"]
				require.Equal(t, raw[id], letter.fields[:own], "the fields are unchanged")
				delete(raw, id)
				require.Contains(t, block["_dead_reason"], "cannot decode")
				require.NotContains(t, block["_dead_reason"], "\xff")
				require.Equal(t, "0", block["_dead_count"], "no handler has seen it")
			}
			require.Empty(t, raw)

			publish(t, client, topic, "after", "after that")
			redistest.Eventually(t, soon, func() bool { return got.ackedCount() == good+2 }, "the group continues")
			for _, sub := range subs {
				sub.events.none(t, redischannels.EventDisconnected, redischannels.EventError)
			}
		})
	}
}

// Without a group there is no dead letter, so a malformed entry is reported and skipped.
func TestFanOut_MalformedEntriesAreSkipped(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	topic := redistest.Key(t)
	sub := newSub(t, client, fanOut)
	messages := sub.subscribe(t, topic)
	var bad []string
	for _, fields := range malformed {
		bad = append(bad, addRaw(t, client, topic, fields...))
	}
	publish(t, client, topic, "good")
	require.Equal(t, []string{"good"}, receiveAcked(t, messages, 1))
	var reported []string
	for _, event := range sub.events.of(redischannels.EventUndecodable) {
		var decode *redischannels.DecodeError
		require.ErrorAs(t, event.Err, &decode)
		require.Equal(t, event.EntryIDs, []string{decode.EntryID})
		require.Equal(t, topic, decode.Topic)
		reported = append(reported, event.EntryIDs...)
	}
	require.Equal(t, bad, reported)
	require.Zero(t, client.Exists(t.Context(), deadStream(topic)).Val())
}

// panickyUnmarshaler decodes the field "data" and does not expect anything else.
type panickyUnmarshaler struct{}

func (panickyUnmarshaler) Unmarshal(entry redischannels.Entry) (*message.Message, error) {
	data, ok := entry.Get("data")
	if !ok {
		panic("no data")
	}
	if string(data) == "nil" {
		return nil, nil
	}
	if !json.Valid(data) {
		return nil, fmt.Errorf("no JSON")
	}
	return message.NewMessage(entry.ID, data), nil
}

// One bad entry hides the rest of its batch: an exception that the loop does not expect
// leaves it, and the rest stays pending.
func TestSubscriber_MalformedEntryHidesNoOther(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	for name, bad := range map[string][]string{
		"panic":          {"other", "1"},
		"error":          {"data", "{"},
		"nothing at all": {"data", "nil"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			topic := redistest.Key(t)
			var want []string
			var badID string
			for n := range 10 {
				if n == 2 {
					badID = addRaw(t, client, topic, bad...)
					continue
				}
				addRaw(t, client, topic, "data", fmt.Sprint(n))
				want = append(want, fmt.Sprint(n))
			}
			sub := newSub(t, client, inFlight(10), func(c *redischannels.SubscriberConfig) { c.Unmarshaler = panickyUnmarshaler{} })
			messages := sub.subscribe(t, topic)
			require.ElementsMatch(t, want, receiveAcked(t, messages, 9))
			require.Equal(t, []string{badID}, sub.events.wait(t, redischannels.EventDeadLettered).EntryIDs)
			eventuallyPending(t, client, topic, 0)
			noMessage(t, messages)
		})
	}
}

// An entry that was removed from the stream comes back without fields, and a decoder that
// does not expect that panics.
func TestSubscriber_RemovedEntries(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)

	t.Run("history", func(t *testing.T) {
		t.Parallel()
		topic := redistest.Key(t)
		ids := publish(t, client, topic, "a", "b", "c")
		require.NoError(t, client.XDel(t.Context(), topic, ids[1]).Err())
		sub := newSub(t, client)
		var got []string
		for msg, err := range sub.History(t.Context(), topic, redischannels.Oldest, redischannels.Latest) {
			require.NoError(t, err)
			got = append(got, string(msg.Payload))
		}
		require.Equal(t, []string{"a", "c"}, got)
	})

	t.Run("pending for a crashed consumer", func(t *testing.T) {
		t.Parallel()
		topic := redistest.Key(t)
		ids := publish(t, client, topic, "a", "b", "c")
		require.NoError(t, client.XGroupCreate(t.Context(), topic, "g", "0").Err())
		require.NoError(t, client.XReadGroup(t.Context(), &redis.XReadGroupArgs{
			Group: "g", Consumer: "dead", Streams: []string{topic, ">"}, Block: -1,
		}).Err())
		require.NoError(t, client.XDel(t.Context(), topic, ids[1]).Err())
		sub := newSub(t, client)
		require.Equal(t, []string{"a", "c"}, receiveAcked(t, sub.subscribe(t, topic), 2))
		require.Equal(t, []string{ids[1]}, sub.events.wait(t, redischannels.EventTrimmed).EntryIDs)
		eventuallyPending(t, client, topic, 0)
	})

	reports := redistest.IsRedis7(t, client) // a renewal that an entry is deleted
	for name, outcome := range map[string]string{"acknowledged": "ack", "nacked": "nack", "given up": "reject"} {
		t.Run("held and "+name, func(t *testing.T) {
			t.Parallel()
			topic := redistest.Key(t)
			sub := newSub(t, client, deliveries(2))
			messages := sub.subscribe(t, topic)
			ids := publish(t, client, topic, "m")
			msg := receive(t, messages)
			require.NoError(t, client.XDel(t.Context(), topic, ids[0]).Err())
			if reports {
				require.Equal(t, ids, sub.events.wait(t, redischannels.EventTrimmed).EntryIDs)
			}
			require.NoError(t, msg.Context().Err(), "its handler continues")
			switch outcome {
			case "ack":
				msg.Ack()
			case "nack": // is delivered again from memory
				msg.Nack()
				again := receive(t, messages)
				require.Equal(t, "m", string(again.Payload))
				require.Equal(t, 2, countOf(t, again))
				again.Ack()
			case "reject": // is written from memory
				require.True(t, redischannels.Reject(msg, "hopeless"))
				msg.Nack()
				sub.events.wait(t, redischannels.EventDeadLettered)
				dead := fieldsOf(t, client, deadStream(topic))
				require.Len(t, dead, 1)
				require.Equal(t, "m", dead[0]["payload"])
				require.Equal(t, "hopeless", dead[0]["_dead_reason"])
				require.Equal(t, ids, sub.events.wait(t, redischannels.EventTrimmed).EntryIDs)
			}
			eventuallyPending(t, client, topic, 0)
			publish(t, client, topic, "next")
			select {
			case next := <-messages:
				require.Equal(t, "next", string(next.Payload))
				next.Ack()
			case <-time.After(soon):
				require.FailNow(t, "nothing comes after it")
			}
			sub.events.none(t, redischannels.EventAckFailed, redischannels.EventDeadLetterFailed)
			if !reports && outcome != "reject" {
				sub.events.none(t, redischannels.EventTrimmed)
			}
		})
	}
}
