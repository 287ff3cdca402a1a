package tests

import (
	"errors"
	"slices"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// deadValues returns the dead letters of a channel, and the errors of those that have no value.
func deadValues[T any](t *testing.T, c *redischannels.Channel[T], query redischannels.DeadLetterQuery) (found []redischannels.DeadValue[T], failures []error) {
	t.Helper()
	for d, err := range c.DeadLetters().List(soonCtx(t), query) {
		found = append(found, d)
		if err != nil {
			failures = append(failures, err)
		}
	}
	return found, failures
}

// The dead letters of a channel are values of its type, in its wire format and with its name
// for their stream; each can be requeued, reappended and purged.
func TestChannel_DeadLetters(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	config := redischannels.StreamChannelConfig{
		Format:     redischannels.FlamincoMarshaler{},
		Subscriber: redischannels.SubscriberConfig{DeadLetterTopic: func(topic string) string { return topic + ":failed" }},
	}
	orders := streamOf[order](t, hub, key, config)
	ids, err := orders.Writer().With(message.Metadata{"tenant": "a"}).WriteAll(t.Context(), order{ID: 1}, order{ID: 2}, order{ID: 3})
	require.NoError(t, err)
	for i := range 3 {
		d := receiveValue(t, orders)
		require.NoError(t, d.Reject("no customer "+string(rune('a'+i))))
	}
	hub.events.waitN(t, redischannels.EventDeadLettered, 3)
	found, failures := deadValues(t, orders, redischannels.DeadLetterQuery{})
	require.Empty(t, failures)
	require.Len(t, found, 3)
	slices.SortFunc(found, func(a, b redischannels.DeadValue[order]) int { return a.Value.ID - b.Value.ID })
	for i, d := range found {
		require.Equal(t, order{ID: i + 1}, d.Value)
		require.Equal(t, "a", d.Metadata["tenant"])
		require.Equal(t, ids[i], d.EntryID)
		require.Equal(t, "no customer "+string(rune('a'+i)), d.Reason)
		require.Equal(t, "g", d.Group)
		require.Equal(t, 1, d.Count)
	}

	results, err := orders.DeadLetters().Requeue(t.Context(), found[0].ID)
	require.NoError(t, err)
	require.Equal(t, redischannels.RequeueDone, results[0].Outcome)
	again := receiveValue(t, orders)
	require.Equal(t, ids[0], again.ID)
	require.NoError(t, again.Ack())
	results, err = orders.DeadLetters().Reappend(t.Context(), found[1].ID)
	require.NoError(t, err)
	require.Equal(t, redischannels.ReappendDone, results[0].Outcome)
	again = receiveValue(t, orders)
	require.Equal(t, order{ID: 2}, again.Value)
	require.NoError(t, again.Ack())
	n, err := orders.DeadLetters().Purge(t.Context(), found[2].ID)
	require.NoError(t, err)
	require.Equal(t, 1, n)
	found, _ = deadValues(t, orders, redischannels.DeadLetterQuery{})
	require.Empty(t, found)
}

// A dead letter that cannot be decoded is listed with its error, in its place. Those of other
// groups are listed only if requested.
func TestChannel_DeadLettersWithoutValue(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	inGroup := func(group string) *redischannels.Channel[order] {
		config := flaminco
		config.Subscriber.ConsumerGroup = group
		return streamOf[order](t, hub, key, config)
	}
	orders, other, everyone := inGroup("g"), inGroup("other"), inGroup(redischannels.NoConsumerGroup)
	write(t, orders, order{ID: 1})
	bad := badEntries(t, hub, key)
	write(t, orders, order{ID: 2})
	for range 2 { // what is undecodable is rejected by itself
		for {
			d, err := orders.Reader().Receive(soonCtx(t))
			var failure *redischannels.DecodeError
			if !errors.As(err, &failure) {
				require.NoError(t, err)
				require.NoError(t, d.Reject("no customer"))
				break
			}
		}
	}
	require.NoError(t, receiveValue(t, other).Reject("too late"))
	hub.events.waitN(t, redischannels.EventDeadLettered, len(bad)+3)

	found, failures := deadValues(t, orders, redischannels.DeadLetterQuery{})
	require.Len(t, found, len(bad)+2)
	require.Len(t, failures, len(bad))
	var entries []string
	for _, d := range found {
		require.Equal(t, "g", d.Group)
		require.NotEmpty(t, d.Reason)
		entries = append(entries, d.EntryID)
	}
	for _, err := range failures {
		var failure *redischannels.DecodeError
		require.ErrorAs(t, err, &failure)
		require.Equal(t, key, failure.Topic)
		require.Contains(t, bad, failure.EntryID)
	}
	for _, id := range bad {
		require.Contains(t, entries, id)
	}
	found, _ = deadValues(t, orders, redischannels.DeadLetterQuery{Group: "other"})
	require.Len(t, found, 1)
	require.Equal(t, "too late", found[0].Reason)
	all, _ := deadValues(t, everyone, redischannels.DeadLetterQuery{})
	require.Len(t, all, len(bad)+3)
	last := slices.IndexFunc(all, func(d redischannels.DeadValue[order]) bool { return d.Group == "other" })
	require.Equal(t, order{ID: 1}, all[last].Value)

	for _, err := range orders.DeadLetters().List(t.Context(), redischannels.DeadLetterQuery{After: "x"}) {
		require.ErrorIs(t, err, redischannels.ErrInvalidArgument)
	}
}

// A transport without dead letters says so.
func TestChannel_DeadLettersNotSupported(t *testing.T) {
	t.Parallel()
	hub := newHubOf(t)
	live, err := redischannels.NewPubSubChannel[int](hub.Hub, redistest.Key(t), redischannels.PubSubChannelConfig{})
	require.NoError(t, err)
	generic, err := redischannels.NewChannel(nil, nil, "k", redischannels.ChannelConfig[int]{})
	require.NoError(t, err)
	for _, c := range []*redischannels.Channel[int]{live, generic} {
		letters := c.DeadLetters()
		for _, err := range letters.List(t.Context(), redischannels.DeadLetterQuery{}) {
			require.ErrorIs(t, err, redischannels.ErrNotSupported)
		}
		_, err := letters.Requeue(t.Context(), "1-0")
		require.ErrorIs(t, err, redischannels.ErrNotSupported)
		_, err = letters.Reappend(t.Context(), "1-0")
		require.ErrorIs(t, err, redischannels.ErrNotSupported)
		_, err = letters.Purge(t.Context(), "1-0")
		require.ErrorIs(t, err, redischannels.ErrNotSupported)
	}
}
