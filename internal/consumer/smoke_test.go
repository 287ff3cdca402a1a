package consumer

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/redistest"
	"github.com/flaminco/redischannels/internal/source"
	"github.com/flaminco/redischannels/internal/window"
)

type printer struct{ t *testing.T }

func (p printer) log(what string, args ...any) { fmt.Println(append([]any{what}, args...)...) }

func (p printer) Disconnected(err error)                      { p.log("disconnected", err) }
func (p printer) Reconnected(lasted time.Duration)            { p.log("reconnected", lasted) }
func (p printer) GroupLost(pos string, e []string, err error) { p.log("grouplost", pos, e, err) }
func (p printer) Trimmed(e []string, n int)                   { p.log("trimmed", e, n) }
func (p printer) LeaseLost(e []string, err error)             { p.log("leaselost", e, err) }
func (p printer) AckIgnored(e []string, n int, err error)     { p.log("ackignored", e, n, err) }
func (p printer) AckFailed(e []string, err error)             { p.log("ackfailed", e, err) }
func (p printer) DeadLettered(e, reason string)               { p.log("dead", e, reason) }
func (p printer) DeadLetterFailed(e string, err error)        { p.log("deadfailed", e, err) }
func (p printer) HandlerTimeout(e string)                     { p.log("timeout", e) }
func (p printer) Released(e []string)                         { p.log("released", e) }
func (p printer) Recovered(e []string)                        { p.log("recovered", e) }
func (p printer) Abandoned(e []string, err error)             { p.log("abandoned", e, err) }
func (p printer) Stalled(n int, why error)                    { p.log("stalled", n, why) }
func (p printer) Failed(err error)                            { p.log("failed", err) }
func (p printer) Read()                                       {}
func (p printer) Delivered(int)                               {}

func open(t *testing.T, cl interface{}, topic, name string, inflight int) *Consumer {
	client := redistest.Shared(t).Client(t)
	c := New(Config{
		Client: client, Keys: []string{topic}, Group: "g", Name: func() (string, error) { return name, nil }, Start: "0-0",
		MinIdle: time.Second, ClaimInterval: 500 * time.Millisecond, BlockTime: time.Second, ConsumerTimeout: time.Hour,
		DrainTimeout: time.Second, StallAfter: time.Minute,
		Origin:        &source.Origin{Topic: topic, Group: "g", Values: context.Background()},
		Window:        window.Config{MaxInFlight: inflight, Ordered: inflight == 1, Prefetch: 1024, PrefetchBytes: 8 << 20},
		MaxDeliveries: 20, Backoff: func(int, float64) time.Duration { return 100 * time.Millisecond },
		DeadTopic: topic + ":dead", Observer: printer{t},
	})
	_, err := c.Open(context.Background())
	require.NoError(t, err)
	return c
}

func TestSmoke(t *testing.T) {
	topic := redistest.Key(t)
	client := redistest.Shared(t).Client(t)
	ctx := context.Background()
	pipe := client.Pipeline()
	for i := range 5000 {
		pipe.Do(ctx, "XADD", topic, "*", "n", i)
	}
	_, err := pipe.Exec(ctx)
	require.NoError(t, err)
	for _, inflight := range []int{1, 100} {
		c := open(t, client, topic, fmt.Sprint("c", inflight), inflight)
		begin := time.Now()
		for n := 0; n < 2000; n++ {
			got, err := c.NextBatch(ctx, nil, source.Limits{Max: 1})
			require.NoError(t, err)
			require.Len(t, got, 1)
			require.Equal(t, 1, got[0].Count)
			if n == 1000 {
				require.NoError(t, got[0].End(source.Outcome{Kind: source.Nack, Delay: 0}))
				got, err = c.NextBatch(ctx, nil, source.Limits{Max: 1})
				require.NoError(t, err)
				require.Equal(t, 2, got[0].Count)
			}
			got[0].Entry.Release()
			require.NoError(t, got[0].End(source.Outcome{Kind: source.Ack}))
		}
		fmt.Println(inflight, time.Since(begin))
		require.NoError(t, c.Close(ctx))
		p, err := client.XPending(ctx, topic, "g").Result()
		require.NoError(t, err)
		fmt.Println(p)
	}
}
