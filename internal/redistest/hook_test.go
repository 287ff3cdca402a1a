package redistest

import (
	"context"
	"errors"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

var errHook = errors.New("said by the hook")

func TestHookBeforePreventsTheCommand(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	client, key := Shared(t).Client(t), Key(t)
	client.AddHook(Before("XADD", func(context.Context, redis.Cmder) error { return errHook }))
	require.ErrorIs(t, client.XAdd(ctx, add(key, "never")).Err(), errHook)
	require.Zero(t, client.XLen(ctx, key).Val())
}

func TestHookAfterHidesTheOutcome(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	client, key := Shared(t).Client(t), Key(t)
	hook := NewHook().AfterOnce("xadd", func(_ context.Context, cmd redis.Cmder) error {
		require.NoError(t, cmd.Err())
		return errHook
	})
	client.AddHook(hook)
	require.ErrorIs(t, client.XAdd(ctx, add(key, "hidden")).Err(), errHook)
	require.NoError(t, client.XAdd(ctx, add(key, "seen")).Err(), "once")
	require.EqualValues(t, 2, client.XLen(ctx, key).Val())
	require.Equal(t, 2, hook.Count("XADD"))
	require.Equal(t, 1, hook.Counts()["xlen"])
	hook.Reset()
	require.Zero(t, hook.Count("xadd"))
}

// The function of a once-only hook issues the command that it is waiting for.
func TestHookOnceDoesNotCallItself(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	client, key := Shared(t).Client(t), Key(t)
	client.AddHook(NewHook().BeforeOnce("xadd", func(ctx context.Context, _ redis.Cmder) error {
		return client.XAdd(ctx, add(key, "earlier")).Err()
	}))
	require.NoError(t, client.XAdd(ctx, add(key, "later")).Err())
	entries := client.XRange(ctx, key, "-", "+").Val()
	require.Len(t, entries, 2)
	require.Equal(t, "earlier", entries[0].Values["field"])
}

func TestHookSeesPipelinesAndTransactions(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	for name, newPipe := range map[string]func(*redis.Client) redis.Pipeliner{
		"pipeline":    func(c *redis.Client) redis.Pipeliner { return c.Pipeline() },
		"transaction": func(c *redis.Client) redis.Pipeliner { return c.TxPipeline() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client, key := Shared(t).Client(t), Key(t)
			hook := NewHook().
				BeforeOnce("xgroup create", func(context.Context, redis.Cmder) error { return errHook }).
				AfterOnce("xadd", func(context.Context, redis.Cmder) error { return errHook })
			client.AddHook(hook)
			run := func() (add1, create redis.Cmder, err error) {
				pipe := newPipe(client)
				add1 = pipe.XAdd(ctx, add(key, "value"))
				create = pipe.XGroupCreate(ctx, key, "group", "0")
				_, err = pipe.Exec(ctx)
				return add1, create, err
			}
			_, _, err := run()
			require.ErrorIs(t, err, errHook)
			require.Zero(t, client.Exists(ctx, key).Val(), "nothing is sent")

			xadd, create, err := run()
			require.ErrorIs(t, err, errHook)
			require.ErrorIs(t, xadd.Err(), errHook)
			require.NoError(t, create.Err())
			require.EqualValues(t, 1, client.XLen(ctx, key).Val())
			require.Equal(t, 2, hook.Count("xadd"))
		})
	}
}
