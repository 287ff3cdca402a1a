package tests

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// A server closes the connection on which a message is larger than it allows. Messages of
// other callers were in the same pipeline, and their outcomes were unknown.
func TestPublisher_LargeMessageFailsAlone(t *testing.T) {
	t.Parallel()
	for _, limit := range []string{"proto-max-bulk-len", "client-query-buffer-limit"} {
		t.Run(limit, func(t *testing.T) {
			t.Parallel()
			server := redistest.Start(t, redistest.Arg(limit, "1mb"))
			proxy := redistest.NewProxy(t, server.Addr())
			proxy.Delay(30 * time.Millisecond) // what comes meanwhile makes up the next pipeline
			p := newTestPublisher(t, server.Client(t, redistest.Via(proxy)))
			topic := redistest.Key(t)
			const rounds, tiny = 3, 70
			for round := range rounds {
				var publishing sync.WaitGroup
				errs := make([]error, tiny)
				for i := range tiny {
					publishing.Go(func() {
						errs[i] = p.Publish(topic, message.NewMessage(fmt.Sprint(round, "-", i), []byte("tiny")))
					})
				}
				err := p.Publish(topic, message.NewMessage("large", make([]byte, 3<<20)))
				publishing.Wait()
				for _, err := range errs {
					require.NoError(t, err)
				}
				require.Zero(t, pubError(t, err).Count(redischannels.OutcomeAppended))
			}
			require.EqualValues(t, rounds*tiny, server.Client(t).XLen(t.Context(), topic).Val())
		})
	}
}

// To the client the refusal is a reply like any other: the connection went back to the pool, and
// was closed under the next message.
func TestPublisher_RefusedMessageLeavesNoDyingConnection(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, redistest.Arg("proto-max-bulk-len", "1mb"))
	proxy := redistest.NewProxy(t, server.Addr())
	proxy.Delay(20 * time.Millisecond)
	p := newTestPublisher(t, server.Client(t, redistest.Via(proxy), func(o *redis.Options) { o.PoolSize = 1 }))
	topic := redistest.Key(t)
	refused := 0
	for i := range 10 {
		err := p.Publish(topic, message.NewMessage("large", make([]byte, 1<<20+1)))
		if pubError(t, err).Count(redischannels.OutcomeNotAppended) == 1 {
			refused++ // else the connection was closed before the refusal was read
		}
		require.NoError(t, p.Publish(topic, message.NewMessage(fmt.Sprint(i), []byte("tiny"))))
	}
	require.Positive(t, refused)
}
