package tests

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/redistest"
	"github.com/flaminco/redischannels/internal/stream"
)

// deadTime is the moment that the tests give their dead letters.
var deadTime = time.Date(2024, 2, 29, 13, 4, 5, 67_000_000, time.FixedZone("", 3600))

// deadMove is one pending entry of a group and the move that gives it up.
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
			Topic: topic, DeadTopic: "{" + topic + "}:dead", Group: "g", Consumer: "me", EntryID: id,
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
	return stream.MoveToDeadLetter(t.Context(), d.client, d.DeadLetterMove)
}

// block is what the dead letter must have after the fields of the entry.
func (d *deadMove) block() []string {
	return []string{
		"_dead_reason", "because", "_dead_entry_id", d.EntryID, "_dead_topic", d.Topic, "_dead_group", "g",
		"_dead_consumer", "me", "_dead_count", "3", "_dead_time", "2024-02-29T12:04:05.067Z",
	}
}

// requirePending checks who owns the entry in the group, "" for nobody.
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

// F26: a dead letter that lost the order or a duplicate of its fields could not
// be decoded as the original was.
func TestDeadLetterMoveKeepsFields(t *testing.T) {
	t.Parallel()
	d := newDeadMove(t, redistest.Shared(t).Client(t), "b", "2", "a", "1", "b", "3", "", "", "bin", "\x00\xff\r\n")
	res, err := d.run(t)
	require.NoError(t, err)
	require.Equal(t, stream.DeadLetterMoved, res.Outcome)
	d.requireDead(t, res.ID)
	d.requirePending(t, "")
	require.EqualValues(t, 1, d.client.XLen(t.Context(), d.Topic).Val(), "other groups still need the entry")
}

// Lua's unpack fails at 8,000 values.
func TestDeadLetterMoveOfManyFields(t *testing.T) {
	t.Parallel()
	sizes(t, func(t *testing.T, fields []string) {
		d := newDeadMove(t, redistest.Shared(t).Client(t), fields...)
		res, err := d.run(t)
		require.NoError(t, err)
		require.Equal(t, stream.DeadLetterMoved, res.Outcome)
		d.requireDead(t, res.ID)
		d.requirePending(t, "")
	})
}

// An original that was a dead letter itself keeps its block in front of the new one.
func TestDeadLetterMoveOfDeadLetter(t *testing.T) {
	t.Parallel()
	d := newDeadMove(t, redistest.Shared(t).Client(t), "a", "1", "_dead_reason", "older", "_dead_entry_id", "1-1", "_dead_topic", "t",
		"_dead_group", "g", "_dead_consumer", "c", "_dead_count", "9", "_dead_time", "2020-01-01T00:00:00.000Z")
	res, err := d.run(t)
	require.NoError(t, err)
	d.requireDead(t, res.ID)
}

func TestDeadLetterMoveCapsReason(t *testing.T) {
	t.Parallel()
	d := newDeadMove(t, redistest.Shared(t).Client(t), "a", "1")
	d.Reason = "x" + strings.Repeat("é", 1000) + "\xff"
	_, err := d.run(t)
	require.NoError(t, err)
	reason := rawRange(t, d.client, d.DeadTopic)[0].fields[3]
	require.Len(t, reason, 1023, "one byte less than the bound: the next rune would be cut")
	require.True(t, utf8.ValidString(reason))
}

func TestDeadLetterMoveTrims(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	for name, set := range map[string]func(*stream.DeadLetterMove){
		"MaxLen": func(m *stream.DeadLetterMove) { m.MaxLen, m.Exact = 1, true },
		"MinID":  func(m *stream.DeadLetterMove) { m.MinID, m.Exact = "5-0", true },
	} {
		sizes(t, func(t *testing.T, fields []string) {
			d := newDeadMove(t, client, fields...)
			require.NoError(t, client.XAdd(t.Context(), &redis.XAddArgs{Stream: d.DeadTopic, ID: "4-0", Values: []string{"old", name}}).Err())
			set(&d.DeadLetterMove)
			res, err := d.run(t)
			require.NoError(t, err)
			d.requireDead(t, res.ID)
		})
	}
}

// F40: a consumer that lost its entry must not give it up under its new owner.
func TestDeadLetterMoveOtherOwner(t *testing.T) {
	t.Parallel()
	sizes(t, func(t *testing.T, fields []string) {
		d := newDeadMove(t, redistest.Shared(t).Client(t), fields...)
		require.NoError(t, d.client.XClaimJustID(t.Context(), &redis.XClaimArgs{
			Stream: d.Topic, Group: "g", Consumer: "other", Messages: []string{d.EntryID},
		}).Err())
		for _, memory := range [][]string{nil, d.fields} {
			d.Fields = memory
			res, err := d.run(t)
			require.NoError(t, err)
			require.Equal(t, stream.DeadLetterResult{Outcome: stream.DeadLetterOtherOwner, Owner: "other"}, res)
			d.requireNoDead(t)
			d.requirePending(t, "other")
		}
	})
}

func TestDeadLetterMoveSettled(t *testing.T) {
	t.Parallel()
	sizes(t, func(t *testing.T, fields []string) {
		d := newDeadMove(t, redistest.Shared(t).Client(t), fields...)
		require.NoError(t, d.client.XAck(t.Context(), d.Topic, "g", d.EntryID).Err())
		res, err := d.run(t)
		require.NoError(t, err)
		require.Equal(t, stream.DeadLetterResult{Outcome: stream.DeadLetterSettled}, res)
		d.requireNoDead(t)
	})
}

// F48: an entry that was trimmed under its handler is written from memory, once,
// whether or not Redis has swept it out of the pending entries list.
func TestDeadLetterMoveGone(t *testing.T) {
	t.Parallel()
	sizes(t, func(t *testing.T, fields []string) {
		for _, swept := range []bool{false, true} {
			d := newDeadMove(t, redistest.Shared(t).Client(t), fields...)
			require.NoError(t, d.client.XTrimMaxLen(t.Context(), d.Topic, 0).Err())
			if swept {
				require.NoError(t, d.client.XAck(t.Context(), d.Topic, "g", d.EntryID).Err())
			}
			res, err := d.run(t)
			require.NoError(t, err)
			require.Equal(t, stream.DeadLetterResult{Outcome: stream.DeadLetterGone}, res)
			d.requireNoDead(t)

			d.Fields = d.fields
			first, err := d.run(t)
			require.NoError(t, err)
			require.Equal(t, stream.DeadLetterMoved, first.Outcome)
			d.requireDead(t, first.ID)
			d.requirePending(t, "")

			again, err := d.run(t)
			require.NoError(t, err)
			require.Equal(t, first, again)
			d.requireDead(t, first.ID)
		}
	})
}

// Two topics may share a dead-letter stream and an entry ID: the dead letter of
// one must not pass for that of the other.
func TestDeadLetterMoveGoneBesideEqualID(t *testing.T) {
	t.Parallel()
	sizes(t, func(t *testing.T, fields []string) {
		client := redistest.Shared(t).Client(t)
		d := newDeadMove(t, client, fields...)
		require.NoError(t, client.XTrimMaxLen(t.Context(), d.Topic, 0).Err())
		require.NoError(t, client.XAck(t.Context(), d.Topic, "g", d.EntryID).Err())
		for _, other := range [][2]string{{"_dead_topic", "elsewhere"}, {"_dead_group", "h"}, {"_dead_entry_id", "1-1"}} {
			block := d.block()
			for i := 0; i < len(block); i += 2 {
				if block[i] == other[0] {
					block[i+1] = other[1]
				}
			}
			require.NoError(t, client.XAdd(t.Context(), &redis.XAddArgs{Stream: d.DeadTopic, Values: block}).Err())
		}
		d.Fields = d.fields
		for range 2 {
			_, err := d.run(t)
			require.NoError(t, err)
			require.EqualValues(t, 4, client.XLen(t.Context(), d.DeadTopic).Val())
		}
	})
}

// F25: an append that fails must never be followed by the acknowledgement.
func TestDeadLetterMoveWrongType(t *testing.T) {
	t.Parallel()
	sizes(t, func(t *testing.T, fields []string) {
		d := newDeadMove(t, redistest.Shared(t).Client(t), fields...)
		require.NoError(t, d.client.Set(t.Context(), d.DeadTopic, "string", 0).Err())
		_, err := d.run(t)
		require.Equal(t, stream.KindWrongType, stream.Classify(err), "%v", err)
		d.requirePending(t, "me")

		require.NoError(t, d.client.Del(t.Context(), d.DeadTopic).Err())
		res, err := d.run(t)
		require.NoError(t, err)
		d.requireDead(t, res.ID)
		d.requirePending(t, "")
	})
}

// F25
func TestDeadLetterMoveOutOfMemory(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client(t)
	ctx := t.Context()
	for _, fields := range [][]string{{"a", "1"}, manyFields(10_000)} {
		d := newDeadMove(t, client, fields...)
		require.NoError(t, client.ConfigSet(ctx, "maxmemory", "1").Err())
		_, err := d.run(t)
		require.Equal(t, stream.KindOOM, stream.Classify(err), "%v", err)
		d.requirePending(t, "me")
		d.requireNoDead(t)

		require.NoError(t, client.ConfigSet(ctx, "maxmemory", "0").Err())
		res, err := d.run(t)
		require.NoError(t, err)
		d.requireDead(t, res.ID)
		d.requirePending(t, "")
	}
}

// F25: a missing right for either half leaves the entry pending and no dead
// letter, however often the move is tried.
func TestDeadLetterMoveNoPermission(t *testing.T) {
	t.Parallel()
	rights := "+hello +client +multi +exec +eval +evalsha +xpending +xrange +xrevrange +xclaim +xdel +xadd +xack"
	for _, missing := range []string{"xadd", "xack", "xpending", "xrange"} {
		t.Run(missing, func(t *testing.T) {
			t.Parallel()
			server := redistest.Start(t, redistest.WithACL("mover on >pw ~* "+strings.ReplaceAll(rights, "+"+missing, "")))
			mover := server.Client(t, redistest.As("mover", "pw"))
			for _, fields := range [][]string{{"a", "1"}, manyFields(10_000)} {
				d := newDeadMove(t, server.Admin(t), fields...)
				for range 3 {
					_, err := stream.MoveToDeadLetter(t.Context(), mover, d.DeadLetterMove)
					require.Equal(t, stream.KindNoPerm, stream.Classify(err), "%v", err)
				}
				d.requirePending(t, "me")
				d.requireNoDead(t)
			}
		})
	}
}

func TestDeadLetterMoveGroupLost(t *testing.T) {
	t.Parallel()
	sizes(t, func(t *testing.T, fields []string) {
		d := newDeadMove(t, redistest.Shared(t).Client(t), fields...)
		require.NoError(t, d.client.XGroupDestroy(t.Context(), d.Topic, "g").Err())
		for _, memory := range [][]string{nil, d.fields} {
			d.Fields = memory
			_, err := d.run(t)
			require.Equal(t, stream.KindNoGroup, stream.Classify(err), "%v", err)
			d.requireNoDead(t)
		}
	})
}

// F25: a lost reply, after which go-redis sends the script again. The second run
// must not write a second dead letter, and must not answer that somebody else
// has settled the entry.
func TestDeadLetterMoveLostReply(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	sizes(t, func(t *testing.T, fields []string) {
		for _, memory := range []bool{false, true} {
			d := newDeadMove(t, server.Client(t), fields...)
			if memory {
				d.Fields = d.fields
				require.NoError(t, d.client.XTrimMaxLen(t.Context(), d.Topic, 0).Err())
			}
			proxy := redistest.NewProxy(t, server.Addr())
			// The transaction is matched by its XADD, the script by its own key.
			match := redistest.And(redistest.Script(), redistest.Contains(d.DeadTopic))
			if len(fields) > 7900 {
				match = redistest.And(redistest.Command("XADD"), redistest.Contains(d.DeadTopic))
			}
			client := server.Client(t, redistest.Via(proxy))
			lost := proxy.DropReplyIf(1, match, func(reply []byte) bool { return reply[0] != '-' })

			res, err := stream.MoveToDeadLetter(t.Context(), client, d.DeadLetterMove)
			if err != nil {
				// go-redis does not repeat a transaction; the engine tries again.
				require.Equal(t, stream.KindNetwork, stream.Classify(err), "%v", err)
				res, err = stream.MoveToDeadLetter(t.Context(), client, d.DeadLetterMove)
			}
			require.NoError(t, err)
			require.Equal(t, 1, lost.Count())
			require.Equal(t, stream.DeadLetterMoved, res.Outcome)
			d.requireDead(t, res.ID)
			d.requirePending(t, "")
		}
	})
}

// The claim is lost between the script that hands the fields out and the
// transaction that appends them.
func TestDeadLetterMoveLosesClaimBeforeTransaction(t *testing.T) {
	t.Parallel()
	for name, steal := range map[string]func(context.Context, *deadMove) error{
		"other owner": func(ctx context.Context, d *deadMove) error {
			return d.client.XClaimJustID(ctx, &redis.XClaimArgs{Stream: d.Topic, Group: "g", Consumer: "other", Messages: []string{d.EntryID}}).Err()
		},
		"settled": func(ctx context.Context, d *deadMove) error {
			return d.client.XAck(ctx, d.Topic, "g", d.EntryID).Err()
		},
		"group lost": func(ctx context.Context, d *deadMove) error {
			return d.client.XGroupDestroy(ctx, d.Topic, "g").Err()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := redistest.Shared(t)
			d := newDeadMove(t, server.Client(t), manyFields(5000)...)
			client := server.Client(t)
			client.AddHook(redistest.NewHook().BeforeOnce("xadd", func(ctx context.Context, _ redis.Cmder) error { return steal(ctx, d) }))
			res, err := stream.MoveToDeadLetter(t.Context(), client, d.DeadLetterMove)
			d.requireNoDead(t)
			switch name {
			case "other owner":
				require.NoError(t, err)
				require.Equal(t, stream.DeadLetterResult{Outcome: stream.DeadLetterOtherOwner, Owner: "other"}, res)
				d.requirePending(t, "other")
			case "settled":
				require.NoError(t, err)
				require.Equal(t, stream.DeadLetterResult{Outcome: stream.DeadLetterSettled}, res)
			default:
				require.Equal(t, stream.KindNoGroup, stream.Classify(err), "%v", err)
			}
		})
	}
}

// The script that hands out many fields renews the claim, so that nobody takes
// the entry while they travel.
func TestDeadLetterMoveRenewsBeforeTransaction(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	d := newDeadMove(t, server.Client(t), manyFields(5000)...)
	require.NoError(t, d.client.Do(t.Context(), "XCLAIM", d.Topic, "g", "me", 0, d.EntryID, "IDLE", 3_600_000, "JUSTID").Err())
	client := server.Client(t)
	stop := errors.New("stop")
	client.AddHook(redistest.Before("xadd", func(context.Context, redis.Cmder) error { return stop }))
	_, err := stream.MoveToDeadLetter(t.Context(), client, d.DeadLetterMove)
	require.ErrorIs(t, err, stop)
	pending, err := d.client.XPendingExt(t.Context(), &redis.XPendingExtArgs{Stream: d.Topic, Group: "g", Start: "-", End: "+", Count: 1}).Result()
	require.NoError(t, err)
	require.Less(t, pending[0].Idle, time.Hour)
	require.EqualValues(t, 1, pending[0].RetryCount, "renewing is no delivery")
}
