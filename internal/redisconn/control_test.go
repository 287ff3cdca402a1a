package redisconn

import (
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

// A function of the caller that panics while the client is opened is an error of that command, and the next
// one opens the client.
func TestControl_PanicInOnClient(t *testing.T) {
	base := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"})
	t.Cleanup(func() { require.NoError(t, base.Close()) })
	panics := true
	c := NewControl(base, "key", time.Second, func(*redis.Client) {
		if panics {
			panic("onClient")
		}
	})
	t.Cleanup(c.Close)
	_, err := c.Client(t.Context())
	require.ErrorIs(t, err, ErrPanic)
	panics = false
	client, err := c.Client(t.Context())
	require.NoError(t, err)
	require.NotNil(t, client)
}
