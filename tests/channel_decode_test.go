package tests

import (
	"context"
	"errors"
	"maps"
	"strings"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// badEntries are ways in which an entry makes no order, by the marshaler or the codec.
func badEntries(t *testing.T, hub *testHub, key string) (ids []string) {
	t.Helper()
	for _, fields := range [][]string{
		{"data", `{"ID":"text"}`},                // another type
		{"data", "null"},                         // no value
		{"other", "x"},                           // no data at all
		{"data", "{"},                            // no JSON
		{"data", `[1]`},                          // another shape
		{"data", `{"ID":1}`, "data", `{"ID":2}`}, // which?
		{"data", `{"ID":1}`, "metadata", "no msgpack \x00"}, // damaged
	} {
		ids = append(ids, addRaw(t, hub.client, key, fields...))
	}
	return ids
}

var flaminco = redischannels.StreamChannelConfig{Format: redischannels.FlamincoMarshaler{}}

// An entry that cannot be decoded is reported, becomes a dead letter,
// is not pending forever, and hides no other.
func TestChannel_UndecodableInAGroup(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	orders := streamOf[order](t, hub, key, flaminco)
	write(t, orders, order{ID: 1})
	bad := badEntries(t, hub, key)
	write(t, orders, order{ID: 2})

	var got []order
	failed := map[string]*redischannels.DecodeError{}
	for o, err := range orders.Reader().All(soonCtx(t)) {
		var failure *redischannels.DecodeError
		if errors.As(err, &failure) {
			require.Zero(t, o)
			failed[failure.EntryID] = failure
			continue
		}
		require.NoError(t, err)
		if got = append(got, o); len(got) == 2 {
			break
		}
	}
	require.Equal(t, []order{{ID: 1}, {ID: 2}}, got)
	require.Len(t, failed, len(bad))
	for _, id := range bad {
		require.Contains(t, failed, id)
		require.Equal(t, key, failed[id].Topic)
		require.NotEmpty(t, failed[id].Reason)
	}
	redistest.Eventually(t, soon, func() bool {
		return hub.client.XLen(t.Context(), deadStream(key)).Val() == int64(len(bad))
	}, "dead letters")
	dead, err := hub.client.XRange(t.Context(), deadStream(key), "-", "+").Result()
	require.NoError(t, err)
	found := false
	for _, letter := range dead {
		require.Contains(t, bad, letter.Values["_dead_entry_id"])
		if letter.Values["_dead_entry_id"] == bad[0] {
			found = true
			require.Equal(t, `{"ID":"text"}`, letter.Values["data"], "unchanged")
			require.NotContains(t, letter.Values["_dead_reason"], "text", "no payload")
		}
	}
	require.True(t, found)
	require.Equal(t, 2, drainAcked(t, orders, 1)[0].ID, "the one at the break")
	eventuallyPending(t, hub.client, key, 0)
}

// Without a group, and in History and Follow, it is yielded in its place and passed.
func TestChannel_UndecodableWithoutAGroup(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	config := flaminco
	config.Subscriber.ConsumerGroup, config.Subscriber.StartFrom = redischannels.NoConsumerGroup, redischannels.Oldest
	orders := streamOf[order](t, hub, key, config)
	write(t, orders, order{ID: 1})
	bad := badEntries(t, hub, key)
	write(t, orders, order{ID: 2})

	check := func(next func() (order, error)) {
		t.Helper()
		first, err := next()
		require.NoError(t, err)
		require.Equal(t, 1, first.ID)
		for _, id := range bad {
			_, err := next()
			var failure *redischannels.DecodeError
			require.ErrorAs(t, err, &failure)
			require.Equal(t, id, failure.EntryID)
		}
		last, err := next()
		require.NoError(t, err)
		require.Equal(t, 2, last.ID)
	}
	check(func() (order, error) { return orders.Reader().Read(soonCtx(t)) })
	var history []error
	for _, err := range orders.Reader().History(t.Context(), redischannels.Oldest) {
		history = append(history, err)
	}
	require.Len(t, history, 2+len(bad))
	n := 0
	for d, err := range orders.Reader().Follow(soonCtx(t), redischannels.Oldest) {
		require.Equal(t, n > 0 && n <= len(bad), err != nil)
		if err == nil {
			require.NoError(t, d.Context().Err())
			require.ErrorIs(t, d.Ack(), redischannels.ErrNotSupported)
		}
		if n++; n == 2+len(bad) {
			break
		}
	}
	require.Zero(t, hub.client.Exists(t.Context(), deadStream(key)).Val())
}

// TryReceive went over a value that cannot be decoded as if nothing were ready, and nothing was reported.
func TestChannel_TryReceiveReportsUndecodable(t *testing.T) {
	t.Parallel()
	for name, group := range map[string]string{"group": "g", "no group": redischannels.NoConsumerGroup} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			hub, key := newHubOf(t), redistest.Key(t)
			config := flaminco
			config.Subscriber.ConsumerGroup, config.Subscriber.StartFrom = group, redischannels.Oldest
			orders := streamOf[order](t, hub, key, config)
			bad := addRaw(t, hub.client, key, "data", "{")
			write(t, orders, order{ID: 1})
			ok, err := orders.Reader().WaitToRead(soonCtx(t))
			require.NoError(t, err)
			require.True(t, ok)
			_, ok, err = orders.Reader().TryReceive()
			var failure *redischannels.DecodeError
			require.ErrorAs(t, err, &failure)
			require.Equal(t, bad, failure.EntryID)
			require.False(t, ok)
			require.Equal(t, []order{{ID: 1}}, drainAcked(t, orders, 1))
		})
	}
}

// A value of another type decoded "successfully" into an empty one.
func TestChannel_StrictJSON(t *testing.T) {
	t.Parallel()
	type invoice struct{ Number, Total int }
	hub, key := newHubOf(t), redistest.Key(t)
	invoices := streamOf[invoice](t, hub, key)
	orders := streamOf[order](t, hub, key, redischannels.StreamChannelConfig{Codec: redischannels.StrictJSON})
	write(t, invoices, invoice{Number: 1})
	_, err := orders.Reader().Receive(soonCtx(t))
	var failure *redischannels.DecodeError
	require.ErrorAs(t, err, &failure)
	event := hub.events.wait(t, redischannels.EventDeadLettered)
	require.Equal(t, []string{failure.EntryID}, event.EntryIDs)
}

// An entry above MaxPayload was known to events only: a caller that reads got no error.
func TestChannel_TooLargeIsReported(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	small := redischannels.StreamChannelConfig{Subscriber: redischannels.SubscriberConfig{MaxPayload: 200}, Codec: redischannels.String}
	texts := streamOf[string](t, hub, key, small)
	wide := small
	wide.Subscriber.MaxPayload = 0
	ids := write(t, streamOf[string](t, hub, key, wide), strings.Repeat("x", 200), "short")
	var failure *redischannels.DecodeError
	n := 0
	for d, err := range texts.Reader().Follow(soonCtx(t), redischannels.Oldest) {
		if n++; n == 2 {
			require.NoError(t, err)
			require.Equal(t, "short", d.Value)
			break
		}
		require.ErrorAs(t, err, &failure)
		require.Equal(t, ids[0], failure.EntryID)
	}
	_, err := texts.Reader().Receive(soonCtx(t))
	require.ErrorAs(t, err, &failure)
	require.Equal(t, ids[0], failure.EntryID)
	require.Contains(t, failure.Reason, "more than MaxPayload 200")
	require.Equal(t, []string{"short"}, drainAcked(t, texts, 1))
	event := hub.events.wait(t, redischannels.EventDeadLettered)
	require.Equal(t, ids[:1], event.EntryIDs)
	require.ErrorContains(t, event.Err, "MaxPayload 200")
	eventuallyPending(t, hub.client, key, 0)
}

// Every codec carries its values.
func TestChannel_Codecs(t *testing.T) {
	t.Parallel()
	hub := newHubOf(t)
	texts := streamOf[string](t, hub, redistest.Key(t, "s"), redischannels.StreamChannelConfig{Codec: redischannels.String})
	write(t, texts, "", "a\x00b", "null")
	require.Equal(t, []string{"", "a\x00b", "null"}, drainAcked(t, texts, 3))
	raw := streamOf[[]byte](t, hub, redistest.Key(t, "b"), redischannels.StreamChannelConfig{Codec: redischannels.Bytes})
	write(t, raw, []byte{0, 255})
	require.Equal(t, []byte{0, 255}, drainAcked(t, raw, 1)[0])
	pointers := streamOf[*order](t, hub, redistest.Key(t, "p"))
	write(t, pointers, &order{ID: 1})
	require.Equal(t, 1, drainAcked(t, pointers, 1)[0].ID)
	_, err := pointers.Writer().Write(t.Context(), nil)
	require.ErrorContains(t, err, "null")
	lists := streamOf[[]int](t, hub, redistest.Key(t, "l"))
	write(t, lists, nil, []int{1})
	require.Equal(t, [][]int{nil, {1}}, drainAcked(t, lists, 2))
}

// A key of the metadata that began with NUL passed for the library's own mark of a value that does not
// decode: a good value was refused, and the text of the writer became the reason.
func TestChannel_MetadataIsNoMark(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	metadata := map[string]string{"": "a", "\x00": "b", "\x00redischannels": "c", "\x00error": "d", "\x00undecodable": "e", "redischannels_reason": "f"}
	msg := message.NewMessage("u", []byte(`7`))
	maps.Copy(msg.Metadata, metadata)
	require.NoError(t, newTestPublisher(t, client, watermillFormat).Publish(topic, msg))

	over := func(change ...func(*redischannels.SubscriberConfig)) *redischannels.Channel[int] {
		c, err := redischannels.NewChannel[int](newTestPublisher(t, client), newSub(t, client, change...), topic, redischannels.ChannelConfig[int]{})
		require.NoError(t, err)
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	streams := streamOf[int](t, newHub(t, client), topic, redischannels.StreamChannelConfig{Subscriber: redischannels.SubscriberConfig{
		ConsumerGroup: "typed", Tuning: quickTuning(), Unmarshaler: redischannels.WatermillMarshaler{},
	}})
	for name, c := range map[string]*redischannels.Channel[int]{"streams": streams, "over a Subscriber": over()} {
		ctx, cancel := context.WithTimeout(t.Context(), soon)
		defer cancel()
		d, err := c.Reader().Receive(ctx)
		require.NoError(t, err, name)
		require.Equal(t, 7, d.Value, name)
		require.NoError(t, d.Ack(), name)
	}
	require.Zero(t, client.Exists(t.Context(), deadStream(topic)).Val())
}
