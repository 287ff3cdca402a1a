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

	"github.com/flaminco/redischannels/internal/redisconn"
	"github.com/flaminco/redischannels/internal/redistest"
	"github.com/flaminco/redischannels/internal/stream"
)

// A dead letter that lost the order or a duplicate of its fields could not
// be decoded as the original was.
func TestDeadLetterMove_KeepsFields(t *testing.T) {
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
func TestDeadLetterMove_ManyFields(t *testing.T) {
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
func TestDeadLetterMove_OfADeadLetter(t *testing.T) {
	t.Parallel()
	d := newDeadMove(t, redistest.Shared(t).Client(t), "a", "1", "_dead_reason", "older", "_dead_entry_id", "1-1", "_dead_topic", "t",
		"_dead_group", "g", "_dead_consumer", "c", "_dead_count", "9", "_dead_time", "2020-01-01T00:00:00.000Z")
	res, err := d.run(t)
	require.NoError(t, err)
	d.requireDead(t, res.ID)
}

func TestDeadLetterMove_BoundsTheReason(t *testing.T) {
	t.Parallel()
	d := newDeadMove(t, redistest.Shared(t).Client(t), "a", "1")
	d.Reason = "\xff" + strings.Repeat("é", 1000)
	_, err := d.run(t)
	require.NoError(t, err)
	reason := rawRange(t, d.client, d.DeadTopic)[0].fields[3]
	require.Len(t, reason, 1023, "one byte less than the bound: the next rune would be cut")
	require.True(t, utf8.ValidString(reason))
}

func TestDeadLetterMove_Trims(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	for name, c := range map[string]struct {
		trim stream.Trim
		left int // of 250 dead letters in nodes of 100
	}{
		"exact length":       {stream.Trim{MaxLen: 7, Exact: true}, 7},
		"approximate length": {stream.Trim{MaxLen: 7}, 51},
		"age":                {stream.Trim{MaxAge: time.Since(time.Unix(240*60, 0))}, 51}, // one is added per minute
		"none":               {stream.Trim{}, 251},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sizes(t, func(t *testing.T, fields []string) {
				d := newDeadMove(t, client, fields...)
				pipe := client.Pipeline()
				for i := range 250 {
					pipe.XAdd(t.Context(), &redis.XAddArgs{Stream: d.DeadTopic, ID: fmt.Sprintf("%d-0", (i+1)*60_000), Values: []string{"old", "1"}})
				}
				_, err := pipe.Exec(t.Context())
				require.NoError(t, err)
				d.Trim = c.trim
				_, err = d.run(t)
				require.NoError(t, err)
				require.EqualValues(t, c.left, client.XLen(t.Context(), d.DeadTopic).Val())
			})
		})
	}
}

// The age was measured by the clock of the consumer: one that is ahead deleted all dead letters.
func TestDeadLetterMove_TrimsByTheServersClock(t *testing.T) {
	t.Parallel()
	for _, ahead := range []time.Duration{10 * time.Minute, -10 * time.Minute} {
		t.Run(fmt.Sprint("consumer is ahead by ", ahead), func(t *testing.T) {
			t.Parallel()
			client := redistest.Start(t, redistest.ClockOffset(-ahead)).Client(t)
			sizes(t, func(t *testing.T, fields []string) {
				d := newDeadMove(t, client, fields...)
				now, err := client.Time(t.Context()).Result()
				require.NoError(t, err)
				for _, age := range []time.Duration{6 * time.Minute, 4 * time.Minute} {
					id := fmt.Sprint(now.Add(-age).UnixMilli(), "-0")
					require.NoError(t, client.XAdd(t.Context(), &redis.XAddArgs{Stream: d.DeadTopic, ID: id, Values: []string{"age", age.String()}}).Err())
				}
				d.Trim = stream.Trim{MaxAge: 5 * time.Minute, Exact: true}
				_, err = d.run(t)
				require.NoError(t, err)
				left := rawRange(t, client, d.DeadTopic)
				require.Len(t, left, 2)
				require.Equal(t, []string{"age", "4m0s"}, left[0].fields)
			})
		})
	}
}

// A consumer that lost its entry must not dead-letter it under its new owner.
func TestDeadLetterMove_OtherOwner(t *testing.T) {
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

func TestDeadLetterMove_AlreadyAcked(t *testing.T) {
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

// An entry that was trimmed under its handler is written from memory, once,
// whether or not Redis has swept it out of the pending entries list.
func TestDeadLetterMove_TrimmedEntry(t *testing.T) {
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
func TestDeadLetterMove_TrimmedEntryBesideEqualID(t *testing.T) {
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
		first, err := d.run(t)
		require.NoError(t, err)
		require.EqualValues(t, 4, client.XLen(t.Context(), d.DeadTopic).Val())

		// Behind 99 newer ones it is still found, so that no second one is written.
		pipe := client.Pipeline()
		for range 99 {
			pipe.XAdd(t.Context(), &redis.XAddArgs{Stream: d.DeadTopic, Values: []string{"x", "y"}})
		}
		_, err = pipe.Exec(t.Context())
		require.NoError(t, err)
		again, err := d.run(t)
		require.NoError(t, err)
		require.Equal(t, first, again)
		require.EqualValues(t, 103, client.XLen(t.Context(), d.DeadTopic).Val())
	})
}

// An append that fails must never be followed by the acknowledgement.
func TestDeadLetterMove_WrongType(t *testing.T) {
	t.Parallel()
	sizes(t, func(t *testing.T, fields []string) {
		d := newDeadMove(t, redistest.Shared(t).Client(t), fields...)
		require.NoError(t, d.client.Set(t.Context(), d.DeadTopic, "string", 0).Err())
		_, err := d.run(t)
		require.Equal(t, redisconn.KindWrongType, redisconn.Classify(err), "%v", err)
		d.requirePending(t, "me")

		require.NoError(t, d.client.Del(t.Context(), d.DeadTopic).Err())
		res, err := d.run(t)
		require.NoError(t, err)
		d.requireDead(t, res.ID)
		d.requirePending(t, "")
	})
}

// An append that fails while the dead-letter stream can be read, here
// because its IDs are used up.
func TestDeadLetterMove_RefusedAppend(t *testing.T) {
	t.Parallel()
	sizes(t, func(t *testing.T, fields []string) {
		d := newDeadMove(t, redistest.Shared(t).Client(t), fields...)
		last := "18446744073709551615-18446744073709551615"
		require.NoError(t, d.client.XAdd(t.Context(), &redis.XAddArgs{Stream: d.DeadTopic, ID: last, Values: []string{"x", "y"}}).Err())
		_, err := d.run(t)
		require.ErrorContains(t, err, "exhausted")
		d.requirePending(t, "me")
		require.EqualValues(t, 1, d.client.XLen(t.Context(), d.DeadTopic).Val())
	})
}

// An append that is refused because Redis is out of memory must never be followed by the acknowledgement.
func TestDeadLetterMove_OutOfMemory(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client(t)
	ctx := t.Context()
	for _, fields := range [][]string{{"a", "1"}, manyFields(10_000)} {
		d := newDeadMove(t, client, fields...)
		require.NoError(t, client.ConfigSet(ctx, "maxmemory", "1").Err())
		_, err := d.run(t)
		require.Equal(t, redisconn.KindOOM, redisconn.Classify(err), "%v", err)
		d.requirePending(t, "me")
		d.requireNoDead(t)

		require.NoError(t, client.ConfigSet(ctx, "maxmemory", "0").Err())
		res, err := d.run(t)
		require.NoError(t, err)
		d.requireDead(t, res.ID)
		d.requirePending(t, "")
	}
}

// A missing permission for either half leaves the entry pending and no dead letter, however often
// the move is tried.
func TestDeadLetterMove_NoPermission(t *testing.T) {
	t.Parallel()
	rights := "+hello +client +multi +exec +eval +evalsha +xpending +xrange +xrevrange +xclaim +xadd +xdel +xack"
	for _, missing := range []string{"xadd", "xack", "xdel +xack", "xpending", "xrange"} {
		t.Run(missing, func(t *testing.T) {
			t.Parallel()
			server := redistest.Start(t, redistest.WithACL("mover on >pw ~* "+strings.ReplaceAll(rights, "+"+missing, "")))
			mover := server.Client(t, redistest.As("mover", "pw"))
			copies := 0
			if missing == "xdel +xack" && !redistest.IsRedis7(t, server.Admin(t)) {
				copies = 3 // one of each attempt, as docs/acl.md says
			}
			for _, fields := range [][]string{{"a", "1"}, manyFields(10_000)} {
				d := newDeadMove(t, server.Admin(t), fields...)
				for range 3 {
					_, err := moveDeadLetter(t.Context(), mover, d.DeadLetterMove)
					require.Equal(t, redisconn.KindNoPerm, redisconn.Classify(err), "%v", err)
				}
				d.requirePending(t, "me")
				require.Len(t, rawRange(t, d.client, d.DeadTopic), copies)
			}
		})
	}
}

func TestDeadLetterMove_GroupLost(t *testing.T) {
	t.Parallel()
	sizes(t, func(t *testing.T, fields []string) {
		d := newDeadMove(t, redistest.Shared(t).Client(t), fields...)
		require.NoError(t, d.client.XGroupDestroy(t.Context(), d.Topic, "g").Err())
		for _, memory := range [][]string{nil, d.fields} {
			d.Fields = memory
			_, err := d.run(t)
			require.Equal(t, redisconn.KindNoGroup, redisconn.Classify(err), "%v", err)
			d.requireNoDead(t)
		}
	})
}

// A lost reply, after which go-redis sends the script again. The second run
// must not write a second dead letter, and must not answer that another consumer
// has acknowledged the entry.
func TestDeadLetterMove_LostReply(t *testing.T) {
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

			res, err := moveDeadLetter(t.Context(), client, d.DeadLetterMove)
			if err != nil {
				// go-redis does not repeat a transaction; the engine tries again.
				require.Equal(t, redisconn.KindNetwork, redisconn.Classify(err), "%v", err)
				res, err = moveDeadLetter(t.Context(), client, d.DeadLetterMove)
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
func TestDeadLetterMove_LosesLeaseBeforeTransaction(t *testing.T) {
	t.Parallel()
	for name, steal := range map[string]func(context.Context, *deadMove) error{
		"other owner": func(ctx context.Context, d *deadMove) error {
			return d.client.XClaimJustID(ctx, &redis.XClaimArgs{Stream: d.Topic, Group: "g", Consumer: "other", Messages: []string{d.EntryID}}).Err()
		},
		"acked": func(ctx context.Context, d *deadMove) error {
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
			res, err := moveDeadLetter(t.Context(), client, d.DeadLetterMove)
			d.requireNoDead(t)
			switch name {
			case "other owner":
				require.NoError(t, err)
				require.Equal(t, stream.DeadLetterResult{Outcome: stream.DeadLetterOtherOwner, Owner: "other"}, res)
				d.requirePending(t, "other")
			case "acked":
				require.NoError(t, err)
				require.Equal(t, stream.DeadLetterResult{Outcome: stream.DeadLetterSettled}, res)
			default:
				require.Equal(t, redisconn.KindNoGroup, redisconn.Classify(err), "%v", err)
			}
		})
	}
}

// The script that returns many fields renews the claim, so that no consumer
// claims the entry while they travel.
func TestDeadLetterMove_RenewsBeforeTransaction(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	d := newDeadMove(t, server.Client(t), manyFields(5000)...)
	require.NoError(t, d.client.Do(t.Context(), "XCLAIM", d.Topic, "g", "me", 0, d.EntryID, "IDLE", 3_600_000, "JUSTID").Err())
	client := server.Client(t)
	stop := errors.New("stop")
	client.AddHook(redistest.Before("xadd", func(context.Context, redis.Cmder) error { return stop }))
	_, err := moveDeadLetter(t.Context(), client, d.DeadLetterMove)
	require.ErrorIs(t, err, stop)
	pending, err := d.client.XPendingExt(t.Context(), &redis.XPendingExtArgs{Stream: d.Topic, Group: "g", Start: "-", End: "+", Count: 1}).Result()
	require.NoError(t, err)
	require.Less(t, pending[0].Idle, time.Hour)
	require.EqualValues(t, 1, pending[0].RetryCount, "renewing is no delivery")
}
