package tests

import (
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/inspect"
	"github.com/flaminco/redischannels/internal/redistest"
	"github.com/flaminco/redischannels/internal/retention"
)

// auditLines returns the fields of the audit stream, without the actor.
func auditLines(t *testing.T, client redis.UniversalClient, topic string) (lines []map[string]any) {
	t.Helper()
	for _, entry := range client.XRange(t.Context(), auditOf(topic), "-", "+").Val() {
		require.Equal(t, "tester", entry.Values["who"])
		delete(entry.Values, "who")
		lines = append(lines, entry.Values)
	}
	return lines
}

// What waits for a group stays behind when it is removed, or vanishes without a word.
func TestRemoveGroup_WithEverythingThatWaitsForIt(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	topic := redistest.Key(t)
	sub := newSub(t, client, inFlight(10))
	messages := sub.subscribe(t, topic)
	publish(t, client, topic, numbered(4)...)
	later(receive(t, messages), time.Hour)
	rejected := receive(t, messages)
	redischannels.Reject(rejected, "no")
	rejected.Nack()
	receive(t, messages).Ack()
	sub.events.wait(t, redischannels.EventDeadLettered)
	eventuallyDeferred(t, client, topic, 1)
	control := newInspector(t, client)

	_, err := control.RemoveGroup(t.Context(), topic, "g", inspect.RemoveGroupOptions{})
	require.ErrorIs(t, err, inspect.ErrGroupBusy)
	require.ErrorContains(t, err, sub.Stats()[0].Consumer)
	_, err = control.RemoveGroup(t.Context(), topic, "g", inspect.RemoveGroupOptions{DryRun: true})
	require.ErrorIs(t, err, inspect.ErrGroupBusy)
	sub.closeSoon(t)

	letters := newDeadLetters(t, client)
	for letter, err := range letters.List(t.Context(), topic, redischannels.DeadLetterQuery{}) {
		require.NoError(t, err)
		_, err = letters.Requeue(t.Context(), topic, letter.ID)
		require.NoError(t, err)
	}
	for _, dryRun := range []bool{true, false} {
		done, err := control.RemoveGroup(t.Context(), topic, "g", inspect.RemoveGroupOptions{DryRun: dryRun})
		require.NoError(t, err)
		require.Equal(t, inspect.RemovedGroup{Pending: 1, Returned: 1, Deferred: 1}, done)
	}
	require.Equal(t, []map[string]any{{"action": "remove group", "group": "g", "pending": "1", "returned": "1", "deferred": "1"}},
		auditLines(t, client, topic))
	require.Empty(t, client.XInfoGroups(t.Context(), topic).Val())
	require.Equal(t, map[string]string{"topic": topic}, client.HGetAll(t.Context(), controlOf(topic)).Val())
	for _, key := range []string{":return:g", ":due:g", ":delayed"} {
		require.Zero(t, client.Exists(t.Context(), "{"+topic+"}"+key).Val(), key)
	}
	_, err = control.RemoveGroup(t.Context(), topic, "g", inspect.RemoveGroupOptions{})
	require.ErrorIs(t, err, inspect.ErrNoGroup)
	require.Len(t, auditLines(t, client, topic), 1)
}

// A group that was deleted for good pins its topic for ever.
func TestRemoveGroup_DeletedGroupPinsUntilThen(t *testing.T) {
	t.Parallel()
	client := trimServer(t)
	s := newTrims(t, client)
	s.add(0, 100)
	s.consume("busy", 100)
	s.consume("forgotten", 40)
	s.look(keepNothing)
	require.NoError(t, client.XGroupDestroy(t.Context(), s.topic, "forgotten").Err())
	s.look(keepNothing)
	require.InDelta(t, 61, s.len(), 3)
	control := newInspector(t, client)
	kept, err := control.Retained(t.Context(), s.topic)
	require.NoError(t, err)
	require.Equal(t, inspect.PinDeleted, kept.Pin)
	require.Equal(t, "forgotten", kept.Group)
	require.EqualValues(t, s.len(), kept.Length)

	_, err = control.RemoveGroup(t.Context(), s.topic, "never", inspect.RemoveGroupOptions{})
	require.ErrorIs(t, err, inspect.ErrNoGroup)
	require.ErrorContains(t, err, "busy")
	_, err = control.RemoveGroup(t.Context(), s.topic, "forgotten", inspect.RemoveGroupOptions{})
	require.NoError(t, err)
	s.look(keepNothing)
	require.LessOrEqual(t, s.len(), int64(3))
}

// A topic of foreign producers can be trimmed by an operator only by what a policy would say, whoever trims it
// otherwise; or nothing says who did it.
func TestTrim_ByAnOperator(t *testing.T) {
	t.Parallel()
	client := redistest.Start(t).Client(t)
	control := newInspector(t, client)
	t.Run("without a policy", func(t *testing.T) {
		s := newTrims(t, client)
		for n := 0; n < 25_000; n += 5000 {
			s.add(n, n+5000)
		}
		got, err := control.Trim(t.Context(), s.topic)
		require.NoError(t, err)
		require.Equal(t, inspect.Retained{Length: 25_000, Pin: inspect.PinNoGroup}, got)
		require.Empty(t, auditLines(t, client, s.topic))

		s.consume("g", 25_000)
		s.consume("slow", 24_000)
		kept, err := control.Retained(t.Context(), s.topic)
		require.NoError(t, err)
		require.Equal(t, inspect.Retained{Length: 25_000, Pin: inspect.PinGroup, Group: "slow"}, kept)
		got, err = control.Trim(t.Context(), s.topic)
		require.NoError(t, err)
		require.InDelta(t, 1001, s.len(), 200)
		require.Equal(t, inspect.Retained{Removed: 25_000 - s.len(), Length: s.len(), Pin: inspect.PinGroup, Group: "slow", PinnedFor: got.PinnedFor}, got)
		sum := int64(0)
		for _, line := range auditLines(t, client, s.topic) {
			require.Equal(t, "trim", line["action"])
			n, err := client.Do(t.Context(), "INCRBY", redistest.Key(t), line["removed"]).Int64()
			require.NoError(t, err)
			sum += n
		}
		require.Equal(t, got.Removed, sum)
		require.Len(t, auditLines(t, client, s.topic), 3, "one for each page")
		require.False(t, client.HExists(t.Context(), controlOf(s.topic), "trim").Val(), "a policy was set")
	})
	t.Run("with the policy of the programs", func(t *testing.T) {
		s := newTrims(t, client)
		s.add(0, 1000)
		s.consume("g", 1000)
		s.look(retention.Policy{StaleAfter: time.Hour, Groups: []string{"late"}})
		got, err := control.Trim(t.Context(), s.topic)
		require.NoError(t, err)
		require.Equal(t, inspect.PinRequired, got.Pin)
		require.Equal(t, "late", got.Group)
		require.Zero(t, got.Removed)
		s.consume("late", 1000)
		got, err = control.Trim(t.Context(), s.topic)
		require.NoError(t, err)
		require.LessOrEqual(t, got.Length, int64(200), "another one leads")
	})
	t.Run("no stream", func(t *testing.T) {
		topic := redistest.Key(t)
		got, err := control.Trim(t.Context(), topic)
		require.NoError(t, err)
		require.Zero(t, got)
		got, err = control.Retained(t.Context(), topic)
		require.NoError(t, err)
		require.Zero(t, got)
		require.Zero(t, client.Exists(t.Context(), controlOf(topic)).Val())
	})
	t.Run("errors", func(t *testing.T) {
		_, err := control.Trim(t.Context(), "")
		require.ErrorIs(t, err, redischannels.ErrInvalidArgument)
		topic := redistest.Key(t)
		require.NoError(t, client.Set(t.Context(), topic, "x", 0).Err())
		_, err = control.Trim(t.Context(), topic)
		require.ErrorIs(t, err, redischannels.ErrWrongType)
		require.ErrorContains(t, err, topic)
	})
}

// Without the permission for a line in the audit stream nothing is done.
func TestACL_TrimAndRemoveGroupWithoutAudit(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, redistest.WithACL("mute on >secret ~* +@all -xadd"))
	admin := server.Admin(t)
	redistest.NeedsRedis7(t, admin, "a script that asks for permissions")
	s := newTrims(t, admin)
	s.add(0, 1000)
	s.consume("g", 1000)
	control := newInspector(t, server.Client(t, redistest.As("mute", "secret")))
	_, err := control.Trim(t.Context(), s.topic)
	require.ErrorIs(t, err, redischannels.ErrPermission)
	require.EqualValues(t, 1000, s.len())
	require.NoError(t, admin.XGroupCreate(t.Context(), s.topic, "idle", "0").Err())
	_, err = control.RemoveGroup(t.Context(), s.topic, "idle", inspect.RemoveGroupOptions{})
	require.ErrorIs(t, err, redischannels.ErrPermission)
	require.Len(t, admin.XInfoGroups(t.Context(), s.topic).Val(), 2)
}
