package tests

import (
	"context"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// OOM was an error like any other, and retried.
func TestPublisher_OutOfMemory(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client(t)
	hook := redistest.NewHook()
	client.AddHook(hook)
	ctx := t.Context()
	topic := redistest.Key(t)
	p := newTestPublisher(t, client)
	require.NoError(t, p.Publish(topic, pubMessages("before", 2)...))
	require.NoError(t, client.XGroupCreate(ctx, topic, "g", "0").Err())
	require.NoError(t, client.ConfigSet(ctx, "maxmemory", "1").Err())
	for _, n := range []int{1, 3} {
		hook.Reset()
		start := time.Now()
		err := p.Publish(topic, pubMessages("refused", n)...)
		require.ErrorIs(t, err, redischannels.ErrOutOfMemory)
		requireOutcomes(t, err, redischannels.OutcomeNotAppended, n)
		require.Less(t, time.Since(start), time.Second)
		require.Equal(t, n, hook.Count("xadd"), "no retry")
	}
	got, err := client.XReadGroup(ctx, &redis.XReadGroupArgs{Group: "g", Consumer: "c", Streams: []string{topic, ">"}}).Result()
	require.NoError(t, err, "reading continues")
	require.EqualValues(t, 1, client.XAck(ctx, topic, "g", got[0].Messages[0].ID).Val())
	require.NoError(t, client.ConfigSet(ctx, "maxmemory", "0").Err())
	require.NoError(t, p.Publish(topic, pubMessages("after", 3)...))
	require.EqualValues(t, 5, client.XLen(ctx, topic).Val())
}

// Memory can run out after the XADDs are queued: EXEC itself is refused then, and
// its reply hides the reason in its text.
func TestPublisher_OutOfMemoryAtExec(t *testing.T) {
	t.Parallel()
	proxy, client, direct := pubProxy(t)
	topic := redistest.Key(t)
	p := newTestPublisher(t, client)
	pubWarm(t, p)
	proxy.BeforeRequest(1, redistest.Command("exec"), func() {
		direct.ConfigSet(context.Background(), "maxmemory", "1")
	})
	err := p.Publish(topic, pubMessages("m", 3)...)
	require.ErrorIs(t, err, redischannels.ErrOutOfMemory)
	requireOutcomes(t, err, redischannels.OutcomeNotAppended, 3)
	require.Zero(t, direct.Exists(t.Context(), topic).Val())
}

// A user who may XADD but not MULTI had the XADDs of a
// "transaction" executed one by one while the client reported a failure.
func TestPublisher_WithoutPermissionForTransactions(t *testing.T) {
	t.Parallel()
	for _, command := range []string{"multi", "exec"} {
		t.Run(command, func(t *testing.T) {
			t.Parallel()
			server := redistest.Start(t, redistest.WithACL("pub on >pw ~* +@all -"+command))
			client := server.Client(t, redistest.As("pub", "pw"))
			topic := redistest.Key(t)
			p := newTestPublisher(t, client)
			require.NoError(t, p.Publish(topic, pubMessages("single", 1)...))
			err := p.Publish(topic, pubMessages("m", 3)...)
			require.ErrorIs(t, err, redischannels.ErrPermission)
			require.ErrorContains(t, err, command)
			requireOutcomes(t, err, redischannels.OutcomeNotAppended, 3)
			require.EqualValues(t, 1, client.XLen(t.Context(), topic).Val())
			for range 20 {
				require.NoError(t, client.Set(t.Context(), topic+"x", "x", 0).Err(), "no connection is left inside of a transaction")
			}
		})
	}
	t.Run("taken away later", func(t *testing.T) {
		t.Parallel()
		server := redistest.Start(t, redistest.WithACL("pub on >pw ~* +@all"))
		client := server.Client(t, redistest.As("pub", "pw"))
		topic := redistest.Key(t)
		p := newTestPublisher(t, client)
		pubWarm(t, p)
		require.NoError(t, server.Admin(t).Do(t.Context(), "acl", "setuser", "pub", "-multi").Err())
		err := p.Publish(topic, pubMessages("m", 3)...)
		require.ErrorIs(t, err, redischannels.ErrPermission)
		requireOutcomes(t, err, redischannels.OutcomeUnknown, 3)
		require.EqualValues(t, 3, client.XLen(t.Context(), topic).Val(), "which is why it must not say that nothing was appended")
	})
	t.Run("xadd", func(t *testing.T) {
		t.Parallel()
		server := redistest.Start(t, redistest.WithACL("pub on >pw ~mine:* +@all"))
		client := server.Client(t, redistest.As("pub", "pw"))
		p := newTestPublisher(t, client)
		for _, n := range []int{1, 3} {
			err := p.Publish("other", pubMessages("m", n)...)
			require.ErrorIs(t, err, redischannels.ErrPermission)
			requireOutcomes(t, err, redischannels.OutcomeNotAppended, n)
			require.NoError(t, p.Publish("mine:1", pubMessages("m", n)...))
		}
	})
}
