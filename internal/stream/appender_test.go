package stream

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/redistest"
)

// Who shares a load with somebody that gave up was told that his own append was withdrawn,
// where no timeout of ours and no retries of the client were set.
func TestOnesEndIsNotTheOthers(t *testing.T) {
	t.Parallel()
	refused := &net.OpError{Op: "dial", Err: errors.New("refused")}
	release := make(chan struct{})
	client := redis.NewClient(&redis.Options{
		MaxRetries: -1, DialerRetries: 1, PoolSize: 10,
		Dialer: func(ctx context.Context, _, _ string) (net.Conn, error) {
			select {
			case <-release:
			case <-ctx.Done():
			}
			return nil, refused
		},
	})
	defer client.Close()
	a := NewAppender(AppenderConfig{Client: client})
	do := func(ctx context.Context) <-chan AppendResult {
		cmds := make([]Append, 1)
		cmds[0].Start(nil, AppendHead("key", Trim{}), 1, 0)
		cmds[0].Field("f", new([]byte))
		results := make([]AppendResult, 1)
		done := make(chan AppendResult, 1)
		go func() {
			a.Do(ctx, time.Time{}, "key", cmds, 10, results)
			done <- results[0]
		}()
		return done
	}
	eventually := func(condition func() bool, what string) {
		redistest.Eventually(t, 10*time.Second, func() bool {
			a.mu.Lock()
			defer a.mu.Unlock()
			return condition()
		}, "%s", what)
	}
	ctx, stay := context.WithCancel(context.Background())
	defer stay()
	var senders []<-chan AppendResult
	first, leaveFirst := context.WithCancel(ctx)
	for n := range singleSenders {
		if n == 0 {
			senders = append(senders, do(first))
		} else {
			senders = append(senders, do(ctx))
		}
		eventually(func() bool { return len(a.singles.flying) == n+1 }, "a sender")
	}
	leaving, leave := context.WithCancel(ctx)
	one, other := do(leaving), do(ctx)
	eventually(func() bool { return len(a.singles.queue) == 2 }, "two that wait for a sender")
	leaveFirst() // its place is theirs
	require.ErrorIs(t, (<-senders[0]).Err, context.Canceled)
	eventually(func() bool { return len(a.singles.queue) == 0 }, "a sender for both")
	leave()
	require.ErrorIs(t, (<-one).Err, context.Canceled)
	eventually(func() bool { return a.singles.stuck == 0 }, "both are withdrawn")
	close(release)
	for _, done := range append(senders[1:], other) {
		r := <-done
		require.Equal(t, NotAppended, r.Outcome)
		require.ErrorIs(t, r.Err, refused, "not the end of another one")
	}
	require.NoError(t, a.Close(t.Context()))
}
