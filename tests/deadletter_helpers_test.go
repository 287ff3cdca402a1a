package tests

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
	"github.com/flaminco/redischannels/internal/stream"
)

// deadTime is the moment that the tests give their dead letters.
var deadTime = time.Date(2024, 2, 29, 13, 4, 5, 67_000_000, time.FixedZone("", 3600))

// deadMove is one pending entry of a group and the move that dead-letters it.
type deadMove struct {
	stream.DeadLetterMove
	client *redis.Client
	fields []string
}

// newDeadMove appends an entry with these names and values and delivers it to
// the consumer "me" of the group "g".
func newDeadMove(t *testing.T, client *redis.Client, fields ...string) *deadMove {
	t.Helper()
	topic := redistest.Key(t)
	ctx := t.Context()
	require.NoError(t, client.XGroupCreateMkStream(ctx, topic, "g", "0").Err())
	id, err := client.XAdd(ctx, &redis.XAddArgs{Stream: topic, Values: fields}).Result()
	require.NoError(t, err)
	readAs(t, client, topic, "g", "me")
	return &deadMove{
		DeadLetterMove: stream.DeadLetterMove{
			Stream: topic, Topic: topic, DeadTopic: "{" + topic + "}:dead", Control: controlOf(topic), Group: "g", Consumer: "me", ID: id, EntryID: id,
			Reason: "because", Count: 3, Time: deadTime,
		},
		client: client, fields: fields,
	}
}

// readAs delivers the next entry of the group to the consumer.
func readAs(t *testing.T, client *redis.Client, topic, group, consumer string) {
	t.Helper()
	got, err := client.XReadGroup(t.Context(), &redis.XReadGroupArgs{
		Group: group, Consumer: consumer, Streams: []string{topic, ">"}, Count: 1, Block: -1,
	}).Result()
	require.NoError(t, err)
	require.Len(t, got[0].Messages, 1)
}

func (d *deadMove) run(t *testing.T) (stream.DeadLetterResult, error) {
	t.Helper()
	return moveDeadLetter(t.Context(), d.client, d.DeadLetterMove)
}

// block has the expected fields of the dead letter after those of the entry.
func (d *deadMove) block() []string {
	return []string{
		"_dead_reason", "because", "_dead_entry_id", d.EntryID, "_dead_topic", d.Topic, "_dead_group", "g",
		"_dead_consumer", "me", "_dead_count", "3", "_dead_time", "2024-02-29T12:04:05.067Z",
	}
}

// requirePending checks who owns the entry in the group, "" for no consumer.
func (d *deadMove) requirePending(t *testing.T, owner string) {
	t.Helper()
	pending, err := d.client.XPendingExt(t.Context(), &redis.XPendingExtArgs{
		Stream: d.Topic, Group: d.Group, Start: d.EntryID, End: d.EntryID, Count: 1,
	}).Result()
	require.NoError(t, err)
	if owner == "" {
		require.Empty(t, pending)
		return
	}
	require.Len(t, pending, 1)
	require.Equal(t, owner, pending[0].Consumer)
	require.EqualValues(t, 1, pending[0].RetryCount)
}

// requireDead checks that the dead-letter stream holds exactly this entry, with
// its fields in order. The raw reply is read: a map would hide order and duplicates.
func (d *deadMove) requireDead(t *testing.T, id string) {
	t.Helper()
	entries := rawRange(t, d.client, d.DeadTopic)
	require.Len(t, entries, 1)
	require.Equal(t, id, entries[0].id)
	require.Equal(t, append(append([]string{}, d.fields...), d.block()...), entries[0].fields)
}

func (d *deadMove) requireNoDead(t *testing.T) {
	t.Helper()
	require.Empty(t, rawRange(t, d.client, d.DeadTopic))
}

type rawEntry struct {
	id     string
	fields []string
}

func rawRange(t *testing.T, client *redis.Client, key string) []rawEntry {
	t.Helper()
	reply, err := client.Do(t.Context(), "XRANGE", key, "-", "+").Slice()
	require.NoError(t, err)
	entries := make([]rawEntry, 0, len(reply))
	for _, item := range reply {
		pair := item.([]any)
		e := rawEntry{id: pair[0].(string)}
		for _, v := range pair[1].([]any) {
			e.fields = append(e.fields, v.(string))
		}
		entries = append(entries, e)
	}
	return entries
}

// manyFields makes names and values, n fields of them.
func manyFields(n int) []string {
	fields := make([]string, 0, 2*n)
	for i := range n {
		fields = append(fields, fmt.Sprintf("f%d", i), fmt.Sprintf("v%d", i))
	}
	return fields
}

// sizes runs a test on the script's own append and on the transaction that an
// entry with too many fields for Lua needs.
func sizes(t *testing.T, fn func(t *testing.T, fields []string)) {
	for name, fields := range map[string][]string{
		"small": {"a", "1"}, "largest in a script": manyFields(3950), "smallest in a transaction": manyFields(3951), "10,000 fields": manyFields(10_000),
	} {
		t.Run(name, func(t *testing.T) { t.Parallel(); fn(t, fields) })
	}
}

func newDeadLetters(t *testing.T, client redis.UniversalClient) *redischannels.DeadLetters {
	t.Helper()
	d, err := redischannels.NewDeadLetters(redischannels.DeadLettersConfig{Client: client}, nil)
	require.NoError(t, err)
	return d
}

// deadTopic has dead letters of the groups "g" and "h", made as a subscriber
// makes them.
type deadTopic struct {
	name, dead string
	client     *redis.Client
}

func newDeadTopic(t *testing.T, client *redis.Client) *deadTopic {
	t.Helper()
	name := redistest.Key(t)
	for _, group := range []string{"g", "h"} {
		for _, key := range []string{name, returnStream(name, group)} {
			require.NoError(t, client.XGroupCreateMkStream(t.Context(), key, group, "0").Err())
		}
	}
	return &deadTopic{name: name, dead: "{" + name + "}:dead", client: client}
}

// die appends an entry, delivers it to the consumer "me" of the group and dead-letters it there.
// An empty ID lets Redis choose one.
func (d *deadTopic) die(t *testing.T, group, id string, fields ...string) (entryID, deadID string) {
	t.Helper()
	entryID, err := d.client.XAdd(t.Context(), &redis.XAddArgs{Stream: d.name, ID: id, Values: fields}).Result()
	require.NoError(t, err)
	for {
		got, err := d.client.XReadGroup(t.Context(), &redis.XReadGroupArgs{
			Group: group, Consumer: "me", Streams: []string{d.name, ">"}, Count: 1, Block: -1,
		}).Result()
		require.NoError(t, err)
		if got[0].Messages[0].ID == entryID {
			break
		}
		require.NoError(t, d.client.XAck(t.Context(), d.name, group, got[0].Messages[0].ID).Err())
	}
	res, err := moveDeadLetter(t.Context(), d.client, stream.DeadLetterMove{
		Stream: d.name, Topic: d.name, DeadTopic: d.dead, Group: group, Consumer: "me", ID: entryID, EntryID: entryID, Reason: "because", Count: 20, Time: deadTime,
	})
	require.NoError(t, err)
	require.Equal(t, stream.DeadLetterMoved, res.Outcome)
	return entryID, res.ID
}

func (d *deadTopic) pending(t *testing.T, group string) []redis.XPendingExt {
	t.Helper()
	pending, err := d.client.XPendingExt(t.Context(), &redis.XPendingExtArgs{Stream: d.name, Group: group, Start: "-", End: "+", Count: 1000}).Result()
	require.NoError(t, err)
	return pending
}

// returned returns the entries of the group's return stream.
func (d *deadTopic) returned(t *testing.T, group string) []rawEntry {
	t.Helper()
	return rawRange(t, d.client, returnStream(d.name, group))
}

func listIDs(t *testing.T, d *redischannels.DeadLetters, topic string, query redischannels.DeadLetterQuery) []string {
	t.Helper()
	var ids []string
	for l, err := range d.List(t.Context(), topic, query) {
		require.NoError(t, err)
		ids = append(ids, l.ID)
	}
	return ids
}

// moveDeadLetter moves one entry.
func moveDeadLetter(ctx context.Context, client redis.UniversalClient, m stream.DeadLetterMove) (stream.DeadLetterResult, error) {
	results, errs := stream.MoveToDeadLetters(ctx, client, []stream.DeadLetterMove{m})
	return results[0], errs[0]
}
