package tests

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
	"github.com/flaminco/redischannels/internal/stream"
)

// The data of a dead letter, and the unchanged fields.
func TestDeadLetters_List(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	topic := newDeadTopic(t, client)
	letters := newDeadLetters(t, client)
	require.Empty(t, listIDs(t, letters, topic.name, redischannels.DeadLetterQuery{}), "the stream does not exist yet")

	entry, first := topic.die(t, "g", "", "b", "2", "a", "1", "b", "\x00\xff", "_dead_reason", "older")
	_, second := topic.die(t, "h", "", "c", "3")
	_, third := topic.die(t, "g", "", "d", "4")
	foreign := client.XAdd(t.Context(), &redis.XAddArgs{Stream: topic.dead, Values: []string{"x", "y"}}).Val()
	elsewhere := client.XAdd(t.Context(), &redis.XAddArgs{Stream: topic.dead, Values: []string{
		"x", "y", "_dead_reason", "r", "_dead_entry_id", entry, "_dead_topic", "elsewhere", "_dead_group", "g", "_dead_consumer", "c", "_dead_count", "1", "_dead_time", "?"}}).Val()
	require.NotEmpty(t, elsewhere)

	for l, err := range letters.List(t.Context(), topic.name, redischannels.DeadLetterQuery{Limit: 1}) {
		require.NoError(t, err)
		require.True(t, deadTime.Equal(l.Time))
		l.Time = time.Time{}
		require.Equal(t, redischannels.DeadLetter{
			ID: first, Topic: topic.name, EntryID: entry, Group: "g", Consumer: "me", Reason: "because", Count: 20,
			Fields: []redischannels.Field{{Name: "b", Value: []byte("2")}, {Name: "a", Value: []byte("1")}, {Name: "b", Value: []byte("\x00\xff")}, {Name: "_dead_reason", Value: []byte("older")}},
		}, l)
		require.Equal(t, redischannels.Entry{Topic: topic.name, ID: entry, Fields: l.Fields}, l.Entry())
	}
	for query, want := range map[redischannels.DeadLetterQuery][]string{
		{}:                                  {first, second, third, foreign},
		{Group: "g"}:                        {first, third},
		{Group: "h"}:                        {second},
		{Group: "nobody"}:                   nil,
		{After: first}:                      {second, third, foreign},
		{After: first, Limit: 1}:            {second},
		{Group: "g", After: first}:          {third},
		{Limit: 2}:                          {first, second},
		{After: elsewhere}:                  nil,
		{After: "18446744073709551615-5"}:   nil,
		{Limit: 100, After: "1", Group: ""}: {first, second, third, foreign},
	} {
		require.Equal(t, want, listIDs(t, letters, topic.name, query), "%+v", query)
	}
}

// A long list must not come in one reply, and a page must not hold many
// large entries.
func TestDeadLetters_ListIsPaged(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	topic := redistest.Key(t)
	dead := "{" + topic + "}:dead"
	pipe := client.Pipeline()
	for i := range 700 {
		value := "small"
		if i >= 490 && i < 510 {
			value = strings.Repeat("x", 700_000)
		}
		pipe.XAdd(t.Context(), &redis.XAddArgs{Stream: dead, Values: []string{"n", strconv.Itoa(i), "v", value}})
	}
	_, err := pipe.Exec(t.Context())
	require.NoError(t, err)

	counts := map[string]int{}
	most := 0
	client.AddHook(redistest.After("xrange", func(_ context.Context, cmd redis.Cmder) error {
		entries, _ := cmd.(*redis.Cmd).Slice()
		size := 0
		for _, e := range entries {
			size += len(e.([]any)[1].([]any)[3].(string))
		}
		most = max(most, size)
		counts[fmt.Sprint(cmd.Args()[len(cmd.Args())-1])]++
		return nil
	}))
	n := 0
	for l, err := range newDeadLetters(t, client).List(t.Context(), topic, redischannels.DeadLetterQuery{}) {
		require.NoError(t, err)
		require.Equal(t, strconv.Itoa(n), string(l.Fields[0].Value))
		n++
	}
	require.Equal(t, 700, n)
	require.Contains(t, counts, "256", "small entries come in large pages")
	require.Less(t, most, 10*700_000, "the first large entries come unexpected")
	require.GreaterOrEqual(t, counts["1"], 10, "the next ones come alone: %v", counts)
}

// A loop that requeues what it lists ends, although the entries die again.
func TestDeadLetters_ListEnds(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	topic := newDeadTopic(t, client)
	const most = 20 // more than the first page
	for range most {
		topic.die(t, "g", "", "a", "1")
	}
	n := 0
	for _, err := range newDeadLetters(t, client).List(t.Context(), topic.name, redischannels.DeadLetterQuery{}) {
		require.NoError(t, err)
		topic.die(t, "g", "", "again", "1")
		n++
		require.LessOrEqual(t, n, most)
	}
	require.Equal(t, most, n)
}

func TestDeadLetters_Arguments(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	letters := newDeadLetters(t, client)
	topic := newDeadTopic(t, client)
	_, id := topic.die(t, "g", "", "a", "1")

	all := func(topic string, ids ...string) []error {
		_, requeue := letters.Requeue(t.Context(), topic, ids...)
		_, reappend := letters.Reappend(t.Context(), topic, ids...)
		_, purge := letters.Purge(t.Context(), topic, ids...)
		return []error{requeue, reappend, purge}
	}
	list := func(topic string, query redischannels.DeadLetterQuery) error {
		for _, err := range letters.List(t.Context(), topic, query) {
			return err
		}
		return nil
	}
	bad := append(all(""), all("a}", id)...)
	bad = append(bad, all(topic.name, id, "1-x")...)
	bad = append(bad, all(topic.name, "")...)
	bad = append(bad, list("", redischannels.DeadLetterQuery{}), list("a}", redischannels.DeadLetterQuery{}),
		list(topic.name, redischannels.DeadLetterQuery{After: "$"}), list(topic.name, redischannels.DeadLetterQuery{Limit: -1}))
	for i, err := range bad {
		require.ErrorIs(t, err, redischannels.ErrInvalidArgument, i)
	}
	require.Equal(t, []string{id}, listIDs(t, letters, topic.name, redischannels.DeadLetterQuery{}), "nothing was done beside a malformed ID")
	for _, err := range all(topic.name) {
		require.NoError(t, err, "no IDs is nothing to do")
	}

	wrong := redistest.Key(t)
	require.NoError(t, client.Set(t.Context(), "{"+wrong+"}:dead", "string", 0).Err())
	for _, err := range append(all(wrong, id), list(wrong, redischannels.DeadLetterQuery{})) {
		require.ErrorIs(t, err, redischannels.ErrWrongType)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := letters.Requeue(ctx, topic.name, id)
	require.ErrorIs(t, err, context.Canceled)
}

// A missing permission must not leave a partial step: a dead letter that was requeued and remains
// would be requeued again.
func TestDeadLetters_NoPermission(t *testing.T) {
	t.Parallel()
	rights := "+hello +client +eval +evalsha +xpending +xrange +xrevrange +xinfo +xadd +xdel"
	for _, missing := range []string{"xdel", "xadd", "xrange", "xpending", "xinfo"} {
		t.Run(missing, func(t *testing.T) {
			t.Parallel()
			server := redistest.Start(t, redistest.WithACL("op on >pw ~* "+strings.ReplaceAll(rights, "+"+missing, "")))
			admin := server.Admin(t)
			topic := newDeadTopic(t, admin)
			_, id := topic.die(t, "g", "", "a", "1")
			letters := newDeadLetters(t, server.Client(t, redistest.As("op", "pw")))
			results, err := letters.Requeue(t.Context(), topic.name, id)
			require.ErrorIs(t, err, redischannels.ErrPermission)
			require.Empty(t, results)
			if missing == "xdel" || missing == "xadd" || missing == "xrange" {
				results, err := letters.Reappend(t.Context(), topic.name, id)
				require.ErrorIs(t, err, redischannels.ErrPermission)
				require.Empty(t, results)
			}
			require.Empty(t, topic.pending(t, "g"))
			require.Empty(t, topic.returned(t, "g"))
			require.EqualValues(t, 1, admin.XLen(t.Context(), topic.name).Val())
			require.EqualValues(t, 1, admin.XLen(t.Context(), topic.dead).Val())
		})
	}
}

// The message comes back as a new entry, for every group, without the fields of
// a dead letter.
func TestDeadLetters_Reappend(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	topic := newDeadTopic(t, client)
	letters := newDeadLetters(t, client)
	entry, id := topic.die(t, "g", "", "b", "2", "a", "1", "b", "3")
	require.NoError(t, client.XTrimMaxLen(t.Context(), topic.name, 0).Err())
	foreign := client.XAdd(t.Context(), &redis.XAddArgs{Stream: topic.dead, Values: []string{"x", "y"}}).Val()
	big, bigID := topic.die(t, "g", "", manyFields(3945)...)
	elsewhere := client.XAdd(t.Context(), &redis.XAddArgs{Stream: topic.dead, Values: []string{
		"x", "y", "_dead_reason", "r", "_dead_entry_id", entry, "_dead_topic", "elsewhere", "_dead_group", "g", "_dead_consumer", "c", "_dead_count", "1", "_dead_time", "?"}}).Val()

	results, err := letters.Reappend(t.Context(), topic.name, id, id, foreign, bigID, elsewhere)
	require.NoError(t, err)
	newID := results[0].NewID
	require.Equal(t, []redischannels.RequeueResult{
		{ID: id, Outcome: redischannels.ReappendDone, EntryID: entry, Group: "g", NewID: newID},
		{ID: id, Outcome: redischannels.RequeueNotFound},
		{ID: foreign, Outcome: redischannels.RequeueForeign},
		{ID: bigID, Outcome: redischannels.RequeueTooLarge, EntryID: big, Group: "g"},
		{ID: elsewhere, Outcome: redischannels.RequeueForeign},
	}, results)
	entries := rawRange(t, client, topic.name)
	require.Equal(t, rawEntry{newID, []string{"b", "2", "a", "1", "b", "3"}}, entries[len(entries)-1])
	require.Equal(t, []string{foreign, bigID}, listIDs(t, letters, topic.name, redischannels.DeadLetterQuery{}))

	_, id = topic.die(t, "g", "", manyFields(3943)...)
	results, err = letters.Reappend(t.Context(), topic.name, id)
	require.NoError(t, err)
	require.Equal(t, redischannels.ReappendDone, results[0].Outcome)
}

// An append that is refused must not delete the dead letter.
func TestDeadLetters_OutOfMemory(t *testing.T) {
	t.Parallel()
	client := redistest.Start(t).Client(t)
	topic := newDeadTopic(t, client)
	letters := newDeadLetters(t, client)
	_, id := topic.die(t, "g", "", "a", "1")
	require.NoError(t, client.ConfigSet(t.Context(), "maxmemory", "1").Err())
	results, err := letters.Reappend(t.Context(), topic.name, id)
	require.ErrorIs(t, err, redischannels.ErrOutOfMemory)
	require.Empty(t, results)
	require.Equal(t, []string{id}, listIDs(t, letters, topic.name, redischannels.DeadLetterQuery{}))

	results, err = letters.Requeue(t.Context(), topic.name, id)
	require.NoError(t, err, "what it appends it deletes elsewhere")
	require.Equal(t, redischannels.RequeueDone, results[0].Outcome)
	require.Len(t, topic.returned(t, "g"), 1)
}

func TestDeadLetters_Purge(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	topic := newDeadTopic(t, client)
	letters := newDeadLetters(t, client)
	n, err := letters.Purge(t.Context(), topic.name, "1-1")
	require.NoError(t, err)
	require.Zero(t, n)

	var ids []string
	for range 3 {
		_, id := topic.die(t, "g", "", "a", "1")
		ids = append(ids, id)
	}
	many := append([]string{ids[0]}, make([]string, 600)...)
	for i := range many[1:] {
		many[i+1] = fmt.Sprintf("1-%d", i)
	}
	n, err = letters.Purge(t.Context(), topic.name, append(many, ids[2])...)
	require.NoError(t, err)
	require.Equal(t, 2, n)
	require.Equal(t, ids[1:2], listIDs(t, letters, topic.name, redischannels.DeadLetterQuery{}))
	require.EqualValues(t, 3, client.XLen(t.Context(), topic.name).Val(), "the originals stay")
}

// Every script works through a cluster client, where both keys must lie in
// one slot, and a name that does not is refused before anything is sent.
func TestDeadLetters_Cluster(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, redistest.Arg("cluster-enabled", "yes"))
	node := server.Client(t)
	addSlots := []any{"CLUSTER", "ADDSLOTS"}
	for slot := range 16384 {
		addSlots = append(addSlots, slot)
	}
	require.NoError(t, node.Do(t.Context(), addSlots...).Err())
	redistest.Eventually(t, 10*time.Second, func() bool {
		return strings.Contains(node.ClusterInfo(t.Context()).Val(), "cluster_state:ok")
	}, "cluster is up")
	cluster := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{server.Addr()}})
	t.Cleanup(func() { require.NoError(t, cluster.Close()) })
	letters := newDeadLetters(t, cluster)

	for _, fields := range [][]string{{"a", "1"}, manyFields(10_000)} {
		d := newDeadMove(t, node, fields...)
		back := returnStream(d.Topic, "g")
		require.NoError(t, node.XGroupCreateMkStream(t.Context(), back, "g", "0").Err())
		res, err := moveDeadLetter(t.Context(), cluster, d.DeadLetterMove)
		require.NoError(t, err)
		require.Equal(t, stream.DeadLetterMoved, res.Outcome)
		requeued, err := letters.Requeue(t.Context(), d.Topic, res.ID)
		require.NoError(t, err)
		if len(fields) < 100 {
			require.Equal(t, redischannels.RequeueDone, requeued[0].Outcome)
			readAs(t, node, back, "g", "me")
			move := d.DeadLetterMove
			move.Stream, move.ID = back, rawRange(t, node, back)[0].id
			res, err = moveDeadLetter(t.Context(), cluster, move)
			require.NoError(t, err)
			require.Equal(t, stream.DeadLetterMoved, res.Outcome)
			require.Zero(t, node.XLen(t.Context(), back).Val())
		} else {
			require.Equal(t, redischannels.RequeueTooLarge, requeued[0].Outcome)
		}
		ids := listIDs(t, letters, d.Topic, redischannels.DeadLetterQuery{Group: "g"})
		require.Len(t, ids, 1)
		results, err := letters.Reappend(t.Context(), d.Topic, ids...)
		require.NoError(t, err)
		if len(fields) < 100 {
			require.Equal(t, redischannels.ReappendDone, results[0].Outcome)
		}
		_, err = letters.Purge(t.Context(), d.Topic, ids...)
		require.NoError(t, err)
		require.Empty(t, listIDs(t, letters, d.Topic, redischannels.DeadLetterQuery{}))
	}

	far, err := redischannels.NewDeadLetters(redischannels.DeadLettersConfig{
		Client: cluster, DeadLetterTopic: func(topic string) string { return topic + ".failed" },
	}, nil)
	require.NoError(t, err)
	_, err = far.Requeue(t.Context(), "orders", "1-1")
	require.ErrorIs(t, err, redischannels.ErrInvalidConfig)
}
