package tests

import (
	"context"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
	"github.com/flaminco/redischannels/internal/stream"
)

// readerID returns the ID of the only connection that blocks in a read of streams.
func readerID(t *testing.T, admin *redis.Client) (id int64) {
	t.Helper()
	redistest.Eventually(t, soon, func() bool {
		list, err := admin.ClientList(t.Context()).Result()
		require.NoError(t, err)
		for line := range strings.Lines(list) {
			if !strings.Contains(line, " cmd=xread") || !strings.Contains(line, " flags=b ") {
				continue
			}
			_, rest, _ := strings.Cut(line, "id=")
			text, _, _ := strings.Cut(rest, " ")
			id, err = strconv.ParseInt(text, 10, 64)
			require.NoError(t, err)
			return true
		}
		return false
	}, "nothing blocks in a read")
	return id
}

// strangers block clients of another program in BLPOP until one has the ID, and returns
// how many of them have come back. They leave at the end of the test.
func strangers(t *testing.T, server *redistest.Server, id int64) (woken *atomic.Int32) {
	t.Helper()
	woken = new(atomic.Int32)
	client := server.Client(t, func(o *redis.Options) {
		o.PoolSize = int(id) + 10
		o.MaxRetries = -1
	})
	ctx, leave := context.WithCancel(context.Background())
	var waiting sync.WaitGroup
	t.Cleanup(func() {
		leave()
		require.NoError(t, client.Close())
		waiting.Wait()
	})
	key := redistest.Key(t)
	for last := int64(0); last < id; {
		conn := client.Conn()
		var err error
		last, err = conn.ClientID(t.Context()).Result()
		require.NoError(t, err)
		waiting.Go(func() {
			defer conn.Close()
			_ = conn.BLPop(ctx, 0, key).Err()
			if ctx.Err() == nil {
				woken.Add(1)
			}
		})
	}
	admin := server.Admin(t)
	redistest.Eventually(t, soon, func() bool {
		list, err := admin.ClientList(t.Context()).Result()
		require.NoError(t, err)
		return strings.Contains(list, "id="+strconv.FormatInt(id, 10)+" ") && strings.Count(list, " cmd=blpop") > 0
	}, "no stranger has the ID %d", id)
	redistest.Eventually(t, soon, func() bool { return redistest.BlockedClients(t, admin) > 0 }, "no stranger blocks")
	return woken
}

// occupy takes IDs of the server, so that those that follow are given again after a restart.
func occupy(t *testing.T, server *redistest.Server) {
	t.Helper()
	for range 30 {
		require.NoError(t, server.Client(t).Ping(t.Context()).Err())
	}
}

// blockedRead begins a read of an empty stream and returns its reader and where its error comes.
func blockedRead(t *testing.T, server *redistest.Server, key string) (*stream.Reader, <-chan error) {
	t.Helper()
	reader := stream.NewReader(server.Client(t), key, time.Minute, nil, nil)
	t.Cleanup(reader.Close)
	read := make(chan error, 1)
	go func() {
		_, err := reader.Read(context.Background(), []string{key}, []stream.ID{{}}, 1)
		read <- err
	}()
	return reader, read
}

// wakesNoStranger proves that a wake does not reach the connection that has got the ID.
func wakesNoStranger(t *testing.T, server *redistest.Server, reader *stream.Reader, id int64) {
	t.Helper()
	woken := strangers(t, server, id)
	for range 3 {
		reader.Wake(t.Context())
	}
	redistest.Never(t, quiet, func() bool { return woken.Load() > 0 }, "a stranger was woken")
}

// CLIENT UNBLOCK went out with the ID of a connection that had failed. After a restart the
// server has given it to a connection of another program, whose blocking command then ended
// without a result.
func TestReader_WakeAfterServerRestart(t *testing.T) {
	t.Parallel()
	server, key := redistest.Start(t), redistest.Key(t)
	occupy(t, server)
	reader, read := blockedRead(t, server, key)
	id := readerID(t, server.Admin(t))
	server.Restart()
	require.Error(t, <-read)
	wakesNoStranger(t, server, reader, id)
}

// The connection of a reader that waits for the application fails unseen, since nothing is
// read from it.
func TestReader_WakeAfterServerRestartBetweenReads(t *testing.T) {
	t.Parallel()
	server, key := redistest.Start(t), redistest.Key(t)
	occupy(t, server)
	reader, read := blockedRead(t, server, key)
	id := readerID(t, server.Admin(t))
	require.NoError(t, server.Client(t).XAdd(t.Context(), &redis.XAddArgs{Stream: key, Values: []string{"f", "v"}}).Err())
	require.NoError(t, <-read)
	server.Restart()
	wakesNoStranger(t, server, reader, id)
}

// dialGate lets a client dial until it is shut. Then a dial lasts until its timeout.
type dialGate struct{ shut atomic.Bool }

func (g *dialGate) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		if g.shut.Load() {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return next(ctx, network, addr)
	}
}
func (g *dialGate) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }
func (g *dialGate) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// The same at the end of a subscription whose reader has not reached the server again.
func TestSubscriber_CloseAfterServerRestart(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	occupy(t, server)
	var gate dialGate
	client := server.Client(t, func(o *redis.Options) { o.DialTimeout = time.Second })
	sub := newSub(t, client, func(c *redischannels.SubscriberConfig) {
		c.OnReadClient = func(client *redis.Client) { client.AddHook(&gate) }
		c.Tuning.BlockTime = time.Minute
	})
	messages := sub.subscribe(t, redistest.Key(t))
	id := readerID(t, server.Admin(t))
	gate.shut.Store(true)
	server.Restart()
	woken := strangers(t, server, id)
	require.NoError(t, sub.Close())
	_, open := <-messages
	require.False(t, open)
	redistest.Never(t, quiet, func() bool { return woken.Load() > 0 }, "a stranger was woken")
}

// A reader whose connection is up is unblocked by CLIENT UNBLOCK: the connection stays.
func TestReader_WakeKeepsTheConnection(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	admin := server.Admin(t)
	key := redistest.Key(t)
	opened := 0
	reader := stream.NewReader(server.Client(t), key, time.Minute, nil, func() { opened++ })
	defer reader.Close()
	for range 3 {
		read := make(chan error, 1)
		go func() {
			_, err := reader.Read(context.Background(), []string{key}, []stream.ID{{}}, 1)
			read <- err
		}()
		readerID(t, admin)
		redistest.Eventually(t, soon, func() bool {
			reader.Wake(t.Context())
			select {
			case err := <-read:
				require.NoError(t, err)
				return true
			default:
				return false
			}
		}, "the read does not end")
	}
	require.Equal(t, 1, opened)
}
