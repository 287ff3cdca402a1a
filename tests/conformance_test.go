package tests

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	wmtests "github.com/ThreeDotsLabs/watermill/pubsub/tests"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// restartChild is the command of Watermill's suite that restarts the server: it sends a request
// to the test process, which owns the server, and waits for the reply.
var restartChild = redistest.ChildMain("restart", func() {
	conn, err := net.Dial("tcp", os.Getenv("RESTART_ADDR"))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	answer, _ := bufio.NewReader(conn).ReadString('\n')
	if answer != "restarted\n" {
		fmt.Fprintln(os.Stderr, "the server was not restarted")
		os.Exit(1)
	}
})

// restartCommand returns a command that restarts the server on its port.
func restartCommand(t *testing.T, server *redistest.Server) []string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			server.Restart()
			_, _ = io.WriteString(conn, "restarted\n")
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() {
		_ = listener.Close()
		<-done
	})
	return redistest.ChildCommand(t, restartChild, "RESTART_ADDR="+listener.Addr().String())
}

// suite makes the publishers and subscribers of Watermill's suite on one client.
type suite struct {
	client      *redis.Client
	maxInFlight int

	mu     sync.Mutex
	closes []func() error
}

func newSuite(t *testing.T, server *redistest.Server, maxInFlight int, mutate ...func(*redis.Options)) *suite {
	s := &suite{maxInFlight: maxInFlight}
	s.client = server.Client(t, append(mutate, func(o *redis.Options) {
		o.PoolSize = 32
		o.PoolTimeout = 30 * time.Second // hundreds of adapters share it
	})...)
	// Not every test of the suite closes what it was given.
	t.Cleanup(func() {
		for _, closeIt := range s.closes {
			require.NoError(t, closeIt())
		}
	})
	return s
}

// constructor makes adapters of one group, except for the test that asks a new subscriber
// for messages which an older one has acknowledged: in one group these are not delivered any more.
func (s *suite) constructor(t *testing.T) (message.Publisher, message.Subscriber) {
	group := "suite"
	if strings.Contains(t.Name(), "/TestNewSubscriberReceivesOldMessages") {
		group = watermill.NewUUID()
	}
	pub, sub := s.groupConstructor(t, group)
	if strings.Contains(t.Name(), "/TestReconnect") {
		return pub, patientEnd{sub.(*redischannels.Subscriber)}
	}
	return pub, sub
}

// patientEnd hands the last messages of Watermill's TestReconnect over with a delay: the test
// notes what it has published when Publish returns, and compares when the last message has
// come, which may be earlier.
type patientEnd struct{ *redischannels.Subscriber }

func (p patientEnd) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	messages, err := p.Subscriber.Subscribe(ctx, topic)
	if err != nil {
		return nil, err
	}
	out := make(chan *message.Message)
	go func() {
		defer close(out)
		n := 0
		for msg := range messages {
			if n++; n > 9_990 { // of 10,000
				<-time.After(100 * time.Millisecond)
			}
			select {
			case out <- msg:
			case <-time.After(soon): // the test is over
				return
			}
		}
	}()
	return out, nil
}

func (s *suite) groupConstructor(t *testing.T, group string) (message.Publisher, message.Subscriber) {
	pub, err := redischannels.NewPublisher(redischannels.PublisherConfig{Client: s.client}, nil)
	require.NoError(t, err)
	sub, err := redischannels.NewSubscriber(redischannels.SubscriberConfig{
		Client:        s.client,
		ConsumerGroup: group,
		MaxInFlight:   s.maxInFlight,
		// The suite nacks one message as often as it likes.
		MaxDeliveries: redischannels.UnlimitedDeliveries,
		NackBackoff:   quickBackoff(),
		Tuning: redischannels.Tuning{
			MinIdle:       2 * time.Second,
			ClaimInterval: 200 * time.Millisecond,
			BlockTime:     time.Second,
			DrainTimeout:  time.Second, // the suite closes with messages in flight
		},
	}, nil)
	require.NoError(t, err)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closes = append(s.closes, pub.Close, sub.Close)
	return pub, sub
}

func (s *suite) features() wmtests.Features {
	return wmtests.Features{
		ConsumerGroups:                      true,
		Persistent:                          true,
		GuaranteedOrder:                     s.maxInFlight == 1,
		GuaranteedOrderWithSingleSubscriber: s.maxInFlight == 1,
		NewSubscriberReceivesOldMessages:    true,
	}
}

// startSuiteServer starts a server that keeps its data when it is restarted. It does not wait
// for the disk: the process is killed, not the machine.
func startSuiteServer(t *testing.T) *redistest.Server {
	return redistest.Start(t, redistest.Arg("appendonly", "yes"), redistest.Arg("appendfsync", "no"))
}

// Watermill's own suite. Its TestReconnect reads a variable that another goroutine of it
// writes, which the race detector calls a failure; in race builds TestSubscriber_ReconnectUnderLoad
// stands in for it, and make soak, which builds without, runs it.
func TestConformance(t *testing.T) {
	for _, maxInFlight := range []int{1, 32} {
		t.Run(fmt.Sprintf("MaxInFlight %d", maxInFlight), func(t *testing.T) {
			conformance(t, maxInFlight)
		})
	}
}

func conformance(t *testing.T, maxInFlight int) {
	server := startSuiteServer(t)
	s := newSuite(t, server, maxInFlight)
	features := s.features()
	if !raceEnabled {
		features.RestartServiceCommand = restartCommand(t, server)
	}
	wmtests.TestPubSub(t, features, s.constructor, s.groupConstructor)
}

// Watermill's suite with restarts of the server, and its stress test: the suite without them
// ten times at once, or STRESS_TEST_COUNT times.
func TestSoakConformance(t *testing.T) {
	if os.Getenv("SOAK") == "" {
		t.Skip("runs with make soak: it takes minutes")
	}
	for _, maxInFlight := range []int{1, 32} {
		t.Run(fmt.Sprintf("MaxInFlight %d, restarts", maxInFlight), func(t *testing.T) {
			conformance(t, maxInFlight)
		})
		t.Run(fmt.Sprintf("MaxInFlight %d, stress", maxInFlight), func(t *testing.T) {
			s := newSuite(t, startSuiteServer(t), maxInFlight)
			wmtests.TestPubSubStressTest(t, s.features(), s.constructor, s.groupConstructor)
		})
	}
}

// The server restarts twice while 100 goroutines publish 10,000 messages and one subscription
// reads them: the work of Watermill's TestReconnect. Every message arrives, and one whose
// Publish was confirmed is in the stream once.
func TestSubscriber_ReconnectUnderLoad(t *testing.T) {
	for _, maxInFlight := range []int{1, 32} {
		t.Run(fmt.Sprintf("MaxInFlight %d", maxInFlight), func(t *testing.T) {
			server := startSuiteServer(t)
			s := newSuite(t, server, maxInFlight)
			pub, sub := s.constructor(t)
			topic := redistest.Key(t)
			messages, err := sub.Subscribe(t.Context(), topic)
			require.NoError(t, err)

			const total, publishers = 10_000, 100
			restarts := map[int64]bool{total / 3: true, total / 2: true}
			var (
				next, again atomic.Int64
				work        sync.WaitGroup
			)
			published := func(n int64) bool {
				msg := message.NewMessage(strconv.FormatInt(n, 10), []byte("x"))
				for {
					err := pub.Publish(topic, msg)
					if err == nil {
						return true
					}
					if !errors.Is(err, redischannels.ErrOutcomeUnknown) && t.Context().Err() == nil {
						return assert.NoError(t, err, "what was not sent is retried inside")
					}
					again.Add(1)
				}
			}
			for range publishers {
				work.Go(func() {
					for n := next.Add(1); n <= total && published(n); n = next.Add(1) {
						if restarts[n] {
							server.Restart()
						}
					}
				})
			}
			received := make(map[string]int, total)
			for len(received) < total {
				msg := receive(t, messages)
				received[msg.UUID]++
				msg.Ack()
			}
			work.Wait()
			require.NoError(t, sub.Close())
			length, err := s.client.XLen(context.Background(), topic).Result()
			require.NoError(t, err)
			require.LessOrEqual(t, length, total+again.Load(), "a confirmed message is in the stream twice")
			t.Logf("%d messages were published again because their outcome was unknown", again.Load())
		})
	}
}
