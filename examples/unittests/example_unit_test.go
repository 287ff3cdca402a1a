package unittests

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"
	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
)

// lines makes what a service prints an event for a test.
type lines chan string

func (l lines) Write(p []byte) (int, error) {
	l <- strings.TrimSpace(string(p))
	return len(p), nil
}

// start runs the service until the end of the test.
func start(t *testing.T, service *billing, orders *redischannels.Channel[Order]) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- service.run(ctx, orders) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-ended)
	})
}

// The function is tested without any transport.
func TestUnit_Function(t *testing.T) {
	service := &billing{out: make(lines, 1)}
	require.NoError(t, service.bill(t.Context(), Order{ID: 1, Amount: 30}))
	require.True(t, redischannels.IsPermanent(service.bill(t.Context(), Order{ID: 2})))
	require.Equal(t, []int{1}, service.billed())
}

// The service is tested with a channel in memory.
func TestUnit_Gochannel(t *testing.T) {
	memory := gochannel.NewGoChannel(gochannel.Config{Persistent: true}, watermill.NopLogger{})
	orders, err := redischannels.NewChannel(memory, memory, "orders", redischannels.ChannelConfig[Order]{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, memory.Close()) })
	t.Cleanup(func() { require.NoError(t, orders.Close()) })

	printed := make(lines, 1)
	start(t, &billing{out: printed}, orders)
	_, err = orders.Writer().Write(t.Context(), Order{ID: 1, Amount: 30})
	require.NoError(t, err)
	require.Equal(t, "billed 1", <-printed)
}

// openOrders opens the channel of the service as its main function does, and returns the dead letters as they come.
func openOrders(t *testing.T, client redis.UniversalClient) (*redischannels.Channel[Order], <-chan redischannels.Event) {
	dead := make(chan redischannels.Event, 1)
	hub, err := redischannels.NewHub(client, redischannels.HubConfig{OnEvent: func(e redischannels.Event) {
		if e.Kind == redischannels.EventDeadLettered {
			dead <- e
		}
	}})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, hub.Close()) })
	orders, err := redischannels.NewStreamChannel[Order](hub, "orders", redischannels.StreamChannelConfig{
		Subscriber: redischannels.SubscriberConfig{ConsumerGroup: "billing"},
	})
	require.NoError(t, err)
	return orders, dead
}

// checkDeadLetters writes an order that is right and one that can never be.
func checkDeadLetters(t *testing.T, client redis.UniversalClient) {
	orders, dead := openOrders(t, client)
	printed := make(lines, 1)
	start(t, &billing{out: printed}, orders)
	_, err := orders.Writer().Write(t.Context(), Order{ID: 1, Amount: 30})
	require.NoError(t, err)
	require.Equal(t, "billed 1", <-printed)

	_, err = orders.Writer().Write(t.Context(), Order{ID: 2})
	require.NoError(t, err)
	require.ErrorContains(t, (<-dead).Err, "no amount")
}

// Groups and dead letters are tested with miniredis, in the process of the test.
func TestUnit_Miniredis(t *testing.T) {
	client := redis.NewClient(&redis.Options{Addr: miniredis.RunT(t).Addr()})
	t.Cleanup(func() { require.NoError(t, client.Close()) })
	checkDeadLetters(t, client)
}

// startRedis starts a server of this test's own on a socket, so that tests run in parallel and share nothing.
func startRedis(t *testing.T) redis.UniversalClient {
	dir, err := os.MkdirTemp("", "redis") // t.TempDir may be too long for a socket
	require.NoError(t, err)
	socket := filepath.Join(dir, "socket")
	binary := os.Getenv("REDIS_SERVER")
	if binary == "" {
		binary = "redis-server"
	}
	server := exec.Command(binary, "--port", "0", "--unixsocket", socket, "--dir", dir, "--save", "")
	output, err := server.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, server.Start(), "install redis-server, or set REDIS_SERVER")
	log := bufio.NewScanner(output)
	for log.Scan() && !strings.Contains(strings.ToLower(log.Text()), "ready to accept connections") {
	}
	client := redis.NewClient(&redis.Options{Network: "unix", Addr: socket})
	t.Cleanup(func() {
		require.NoError(t, client.Close())
		require.NoError(t, server.Process.Kill())
		_ = server.Wait() // reports the kill
		require.NoError(t, os.RemoveAll(dir))
	})
	return client
}

// The same test with a real server.
func TestUnit_Server(t *testing.T) {
	checkDeadLetters(t, startRedis(t))
}
