package redistest

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

func TestStartedServersArePrivate(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	a, b := Start(t), Start(t)
	require.NotEqual(t, a.Addr(), b.Addr())

	require.NoError(t, a.Client(t).Set(ctx, "key", "a", 0).Err())
	require.ErrorIs(t, b.Client(t).Get(ctx, "key").Err(), redis.Nil)

	dir := a.Client(t).ConfigGet(ctx, "dir").Val()["dir"]
	require.NotEqual(t, dir, b.Client(t).ConfigGet(ctx, "dir").Val()["dir"])
	require.Contains(t, a.Log(), "Ready to accept connections")
}

func TestServerEndsWithItsTest(t *testing.T) {
	t.Parallel()
	var addr string
	t.Run("inner", func(t *testing.T) { addr = Start(t).Addr() })
	_, err := net.Dial("tcp", addr)
	require.Error(t, err)
}

func TestArgIsPartOfTheConfiguration(t *testing.T) {
	t.Parallel()
	s := Start(t, Arg("maxmemory", "7mb"), Arg("maxmemory-policy", "noeviction"))
	got := s.Client(t).ConfigGet(testContext(t), "maxmemory").Val()
	require.Equal(t, "7340032", got["maxmemory"])
}

func TestKilledServerKeepsDataOnlyWithAOF(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	for name, opts := range map[string][]Option{"memory": nil, "aof": {AOF()}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := Start(t, opts...)
			client, pid := s.Client(t), s.PID()
			require.NoError(t, client.Set(ctx, "key", "value", 0).Err())

			s.Kill()
			require.Zero(t, s.PID())
			require.Error(t, client.Ping(ctx).Err())

			s.Restart()
			require.NotEqual(t, pid, s.PID())
			value, err := client.Get(ctx, "key").Result()
			if opts == nil {
				require.ErrorIs(t, err, redis.Nil)
			} else {
				require.NoError(t, err)
				require.Equal(t, "value", value)
			}
		})
	}
}

func TestStoppedServerRefusesUntilRestart(t *testing.T) {
	t.Parallel()
	s := Start(t)
	s.Stop()
	s.Stop() // does nothing
	_, err := net.Dial("tcp", s.Addr())
	require.Error(t, err)
	s.Restart()
	s.Restart() // kills the running one before
	require.NoError(t, s.Client(t).Ping(testContext(t)).Err())
}

func TestPausedServerIsSilent(t *testing.T) {
	t.Parallel()
	s := Start(t)
	client := s.Client(t, func(o *redis.Options) {
		o.MaxRetries = -1
		o.ReadTimeout = 100 * time.Millisecond
	})
	ctx := testContext(t)
	require.NoError(t, client.Ping(ctx).Err())
	s.Pause()
	var timeout net.Error
	require.ErrorAs(t, client.Ping(ctx).Err(), &timeout)
	require.True(t, timeout.Timeout())
	s.Resume()
	require.NoError(t, client.Ping(ctx).Err())
}

func TestACLSurvivesRestart(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	s := Start(t, WithACL("default off", "alice on >secret ~app:* +get +set +ping +select"))
	alice := s.Client(t, As("alice", "secret"))
	for range 2 {
		require.NoError(t, alice.Set(ctx, "app:key", "1", 0).Err())
		require.ErrorContains(t, alice.Set(ctx, "other", "1", 0).Err(), "NOPERM")
		require.ErrorContains(t, alice.Del(ctx, "app:key").Err(), "NOPERM")
		require.Error(t, s.Client(t).Ping(ctx).Err(), "the default user is off")
		require.NoError(t, s.Admin(t).Del(ctx, "app:key").Err())
		s.Restart()
	}
}

func TestPasswordOfTheDefaultUser(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	s := Start(t, Password("marker secret"))
	require.NoError(t, s.Client(t).Ping(ctx).Err())
	require.ErrorContains(t, s.Client(t, As("", "")).Ping(ctx).Err(), "NOAUTH")
}

func TestTLSDemandsACertificate(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	s := Start(t, TLS())
	require.NoError(t, s.Client(t).Set(ctx, "key", "value", 0).Err())
	require.NotEmpty(t, s.TLSConfig().Certificates)

	plain := s.Client(t, func(o *redis.Options) { o.TLSConfig, o.MaxRetries = nil, -1 })
	require.Error(t, plain.Ping(ctx).Err())
	nobody := s.Client(t, func(o *redis.Options) { o.TLSConfig.Certificates, o.MaxRetries = nil, -1 })
	require.Error(t, nobody.Ping(ctx).Err())
}

func TestStartReportsTheOutputOfTheServer(t *testing.T) {
	t.Parallel()
	_, err := launch(config{lines: []string{"no-such-directive yes"}})
	require.ErrorContains(t, err, "no-such-directive")
}

func TestNamedBinaryMustExist(t *testing.T) {
	t.Parallel()
	_, err := launch(config{binary: "/no/such/redis-server"})
	require.Error(t, err)
	require.NotErrorIs(t, err, errNoServer)
}

func TestSharedIsOneServer(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	key := Key(t, "a", "b")
	require.NoError(t, Shared(t).Client(t).Set(ctx, key, "value", 0).Err())
	require.Equal(t, "value", Shared(t).Client(t).Get(ctx, key).Val())
}

func TestKeyIsUniqueAndHasNoHashTag(t *testing.T) {
	t.Parallel()
	t.Run("{braces} and blanks", func(t *testing.T) {
		a, b := Key(t, "dead"), Key(t, "dead")
		require.NotEqual(t, a, b)
		require.True(t, strings.HasSuffix(a, ":dead"))
		require.NotContains(t, a, "{")
		require.NotContains(t, a, " ")
	})
}

func TestClockOffset(t *testing.T) {
	for _, offset := range []time.Duration{-10 * time.Minute, 10 * time.Minute} {
		server := Start(t, ClockOffset(offset))
		now, err := server.Client(t).Time(t.Context()).Result()
		require.NoError(t, err)
		require.WithinDuration(t, time.Now().Add(offset), now, 5*time.Second)
		server.Restart()
		now, err = server.Client(t).Time(t.Context()).Result()
		require.NoError(t, err)
		require.WithinDuration(t, time.Now().Add(offset), now, 5*time.Second)
	}
}
