package appender

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

// A server that is asked with every message costs a round trip per message; one that is never
// asked again is not followed when its clock is corrected.
func TestClocks_AskOncePerMinute(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newClocks(nil)
		require.True(t, c.due("a"))
		require.True(t, c.due("b"), "nothing is known, so every caller has to ask")
		require.True(t, c.now("a").IsZero())
		behind := time.Now().Add(-10 * time.Minute)
		c.set("", behind)
		require.False(t, c.due("a"))
		require.True(t, c.known("b", ""), "it is the same server")
		time.Sleep(clockRefresh - 1)
		require.False(t, c.due("a"))
		require.Equal(t, behind.Add(clockRefresh-1), c.now("a"))

		time.Sleep(time.Nanosecond)
		require.True(t, c.due("a"))
		require.False(t, c.due("b"), "others use the old answer while one asks")
		require.False(t, c.known("a", ""), "the one that asks has to")
		time.Sleep(clockRetry)
		require.True(t, c.due("b"), "that one has failed")
		c.set("", time.Now())
		require.False(t, c.due("a"))
		require.Equal(t, time.Now(), c.now("b"))

		c.forget("a")
		require.True(t, c.due("b"), "another server may be there now")
	})
}

// Each master of a cluster has a clock of its own.
func TestClocks_OfACluster(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newClocks(new(redis.ClusterClient))
		now := time.Now()
		require.False(t, c.known("foo", "a:1"))
		c.set("a:1", now.Add(time.Hour))
		require.False(t, c.known("bar", "b:2"))
		c.set("b:2", now)
		require.Equal(t, now.Add(time.Hour), c.now("{foo}x"), "a key of the same slot")
		require.Equal(t, now, c.now("bar"))
		require.True(t, c.due("123456789"), "its server is not known")
		require.True(t, c.known("123456789", "a:1"), "it is one that was asked")
		require.False(t, c.due("123456789"))

		c.forget("foo")
		require.True(t, c.due("foo"))
		require.True(t, c.due("123456789"), "the answer of the server that has failed is void")
		require.False(t, c.due("bar"))
	})
}
