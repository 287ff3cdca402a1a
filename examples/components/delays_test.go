package components

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/components/delay"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// mostLate is how late a message is whose mover was killed.
const mostLate = 3 * time.Second

// moverChild is a process with a Housekeeper of CHILD_TOPIC, at the nodes CHILD_NODES, which are those of a
// cluster if there are several. It says "live".
var moverChild = redistest.ChildMain("mover", func() {
	nodes := strings.Split(os.Getenv("CHILD_NODES"), " ")
	keeper, err := redischannels.NewHousekeeper(redischannels.HousekeeperConfig{
		Client: redis.NewUniversalClient(&redis.UniversalOptions{Addrs: nodes}),
		Topics: []string{os.Getenv("CHILD_TOPIC")}, Interval: 200 * time.Millisecond,
	}, nil)
	if err == nil {
		fmt.Println("live")
		err = keeper.Run(context.Background())
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
})

// retryTest has messages fail a number of times with PoisonQueue, DelayOnError and Requeuer. All have the empty
// UUID.
type retryTest struct {
	connect            func() redis.UniversalClient
	orders, failed     string
	first              time.Duration
	failures, messages int
	pace               time.Duration // between two messages: they are due at different times

	mu       sync.Mutex
	attempts map[string][]time.Time // by payload
	stored   map[string][]int64     // server's clock in ms, of each delay
}

func (r *retryTest) handle(msg *message.Message) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	payload := string(msg.Payload)
	r.attempts[payload] = append(r.attempts[payload], time.Now())
	if len(r.attempts[payload]) <= r.failures {
		return errors.New("the bank is closed")
	}
	return nil
}

// recorder is a Publisher that notes when each delayed message was stored.
type recorder struct {
	*redischannels.Publisher
	test *retryTest
}

func (p recorder) Publish(topic string, msgs ...*message.Message) error {
	results, err := p.AppendResults(context.Background(), topic, msgs...)
	p.test.mu.Lock()
	defer p.test.mu.Unlock()
	for i, result := range results {
		if result.DelayedID != "" {
			p.test.stored[string(msgs[i].Payload)] = append(p.test.stored[string(msgs[i].Payload)], milliseconds(result.DelayedID))
		}
	}
	return err
}

// milliseconds are those of an ID.
func milliseconds(id string) (ms int64) {
	_, _ = fmt.Sscanf(id, "%d-", &ms)
	return ms
}

// run publishes the messages and returns when each was handled.
func (r *retryTest) run(t *testing.T) {
	r.attempts, r.stored = make(map[string][]time.Time), make(map[string][]int64)
	client := r.connect()
	pub, err := redischannels.NewPublisher(redischannels.PublisherConfig{Client: client}, nil)
	require.NoError(t, err)
	sub, err := redischannels.NewSubscriber(redischannels.SubscriberConfig{Client: r.connect(), ConsumerGroup: "billing", MaxInFlight: 32}, nil)
	require.NoError(t, err)
	defer func() { require.NoError(t, sub.Close()) }()
	router, err := retrying(recorder{pub, r}, sub, r.orders, r.failed, r.first, r.handle)
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { done <- router.Run(context.Background()) }()
	defer func() {
		require.NoError(t, router.Close())
		require.NoError(t, <-done)
		require.NoError(t, pub.Close())
	}()
	<-router.Running()
	for n := range r.messages {
		<-time.After(r.pace)
		require.NoError(t, pub.Publish(r.orders, message.NewMessage("", []byte{byte('a' + n/26), byte('a' + n%26)})))
	}
	redistest.Eventually(t, r.first<<r.failures+time.Duration(r.failures)*mostLate+2*soon, func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, at := range r.attempts {
			if len(at) <= r.failures {
				return false
			}
		}
		return len(r.attempts) == r.messages
	}, "all are handled")
}

// check returns how late each delayed message was appended. Each was appended once, not early, and handled after
// each of the delays once.
func (r *retryTest) check(t *testing.T, client redis.UniversalClient) (late []time.Duration) {
	require.Zero(t, client.Exists(t.Context(), "{"+r.failed+"}:delayed").Val()+client.Exists(t.Context(), "{"+r.failed+"}:due").Val())
	require.EqualValues(t, r.messages*(r.failures+1), client.XLen(t.Context(), r.orders).Val())
	entries, err := client.XRange(t.Context(), r.failed, "-", "+").Result()
	require.NoError(t, err)
	require.Len(t, entries, r.messages*r.failures, "each was appended once")
	appended := make(map[string]int)
	for _, e := range entries {
		msg, err := redischannels.WatermillMarshaler{}.Unmarshal(redischannels.Entry{Topic: r.failed, ID: e.ID, Fields: fieldsOf(e)})
		require.NoError(t, err)
		require.Empty(t, msg.UUID)
		payload := string(msg.Payload)
		n := appended[payload]
		want := r.first << n
		require.Equal(t, want.String(), msg.Metadata.Get(delay.DelayedForKey), "delay %d of %s", n+1, payload)
		require.Greater(t, len(r.stored[payload]), n)
		lateness := time.Duration(milliseconds(e.ID)-r.stored[payload][n])*time.Millisecond - want
		require.GreaterOrEqual(t, lateness, time.Duration(0), "delay %d of %s was early", n+1, payload)
		late = append(late, lateness)
		appended[payload]++
	}
	for payload, at := range r.attempts {
		require.Len(t, at, r.failures+1, payload)
		require.Len(t, r.stored[payload], r.failures, "the Requeuer delayed %s", payload)
	}
	for n := range r.failures {
		want := r.first << n
		var took []time.Duration
		for _, at := range r.attempts {
			took = append(took, at[n+1].Sub(at[n]))
			require.GreaterOrEqual(t, at[n+1].Sub(at[n]), want)
		}
		slices.Sort(took)
		require.Less(t, took[len(took)/2], 2*want, "attempt %d was delayed twice", n+2)
		t.Logf("attempt %d after %s: median %s, at most %s", n+2, want, took[len(took)/2], took[len(took)-1])
	}
	return late
}

func fieldsOf(m redis.XMessage) (fields []redischannels.Field) {
	for _, name := range slices.Sorted(maps.Keys(m.Values)) {
		fields = append(fields, redischannels.Field{Name: name, Value: []byte(fmt.Sprint(m.Values[name]))})
	}
	return fields
}

// disturb kills one of five movers every now and then, until the end of run, and returns how often.
func (r *retryTest) disturb(t *testing.T, nodes []string, between time.Duration, run func()) (kills int) {
	movers := make([]*redistest.Child, 5)
	start := func() *redistest.Child {
		return redistest.StartChild(t, moverChild, "CHILD_NODES="+strings.Join(nodes, " "), "CHILD_TOPIC="+r.failed)
	}
	for i := range movers {
		movers[i] = start()
	}
	for _, m := range movers {
		m.WaitLine("live", 2*soon)
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			case <-time.After(between):
			}
			i := rand.IntN(len(movers))
			movers[i].Kill()
			kills++
			movers[i] = start()
		}
	}()
	defer func() { <-stopped }()
	defer close(stop)
	run()
	return kills
}

// loseReplies cuts the connection of a mover that has moved something, before the reply, every now and then,
// until the end of the returned function, which returns how often.
func loseReplies(proxy *redistest.Proxy, topic string, between time.Duration) (stop func() int) {
	mover := redistest.And(redistest.Script(), redistest.Contains("{"+topic+"}:mover"), redistest.Contains("{"+topic+"}:dead"))
	moved := func(reply []byte) bool {
		lines := bytes.Split(reply, []byte("\r\n"))
		return bytes.Contains(reply, []byte("leads")) && !slices.ContainsFunc(lines, func(line []byte) bool { return string(line) == ":0" })
	}
	end, ended, lost := make(chan struct{}), make(chan struct{}), 0
	go func() {
		defer close(ended)
		for {
			rule := proxy.DropReplyIf(1, mover, moved)
			for rule.Count() == 0 {
				select {
				case <-end:
					rule.Remove()
					return
				case <-time.After(5 * time.Millisecond):
				}
			}
			lost++
			<-time.After(between)
		}
	}()
	return func() int {
		close(end)
		<-ended
		return lost
	}
}

// Requeuer publishes a message with the metadata of its last delay, which must not delay it again.
func TestDelayed_PoisonQueueAndRequeuer(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	r := &retryTest{
		connect: func() redis.UniversalClient { return server.Client(t) },
		orders:  redistest.Key(t, "orders"), failed: redistest.Key(t, "failed"), first: time.Second, failures: 2, messages: 30,
	}
	r.run(t)
	for _, late := range r.check(t, server.Client(t)) {
		require.Less(t, late, r.first)
	}
}

// testRetriesWithFaults has five processes and the router's move through a link that loses replies, while the
// processes are killed.
func testRetriesWithFaults(t *testing.T, messages int) {
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr())
	r := &retryTest{
		connect: func() redis.UniversalClient { return server.Client(t, redistest.Via(proxy)) },
		orders:  redistest.Key(t, "orders"), failed: redistest.Key(t, "failed"), first: 2 * time.Second, failures: 3,
		messages: messages, pace: 15 * time.Millisecond,
	}
	stop := loseReplies(proxy, r.failed, 20*time.Millisecond)
	kills := r.disturb(t, []string{proxy.Addr()}, 300*time.Millisecond, func() { r.run(t) })
	lost := stop()
	most := slices.Max(r.check(t, server.Client(t)))
	t.Logf("%d messages, %d kills, %d lost replies, at most %s late", messages, kills, lost, most)
	require.Less(t, most, mostLate)
	require.Greater(t, kills, 10)
	require.Greater(t, lost, 5)
}

// The mover is killed, and the reply to a move is lost.
func TestDelayed_PoisonQueueAndRequeuerWithFaults(t *testing.T) {
	t.Parallel()
	testRetriesWithFaults(t, 150)
}

func TestSoakDelayed_PoisonQueueAndRequeuerWithFaults(t *testing.T) {
	if os.Getenv("SOAK") == "" {
		t.Skip("a part of make soak")
	}
	testRetriesWithFaults(t, 600)
}

// The slot of what waits moves from master to master, while what moves is killed.
func TestDelayed_PoisonQueueAndRequeuerWhileASlotMoves(t *testing.T) {
	t.Parallel()
	cluster := redistest.StartCluster(t, 3)
	var nodes []string
	for node := range 3 {
		nodes = append(nodes, cluster.Admin(node).Options().Addr)
	}
	r := &retryTest{
		connect: func() redis.UniversalClient { return cluster.Client(t) },
		orders:  redistest.Key(t, "orders"), failed: redistest.Key(t, "failed"), first: 2 * time.Second, failures: 3,
		messages: 60, pace: 15 * time.Millisecond,
	}
	moves := 0
	stop, stopped := make(chan struct{}), make(chan struct{})
	kills := r.disturb(t, nodes, 500*time.Millisecond, func() {
		go func() {
			defer close(stopped)
			for owner := cluster.Owner(0, r.failed); ; moves++ {
				select {
				case <-stop:
					return
				case <-time.After(2 * time.Second):
				}
				owner = (owner + 1) % 3
				cluster.MoveSlot(r.failed, owner)
			}
		}()
		defer func() { <-stopped }()
		defer close(stop)
		r.run(t)
	})
	late := r.check(t, cluster.Client(t))
	t.Logf("%d kills, %d moves of the slot, at most %s late", kills, moves, slices.Max(late))
	require.Greater(t, moves, 3)
	require.Greater(t, kills, 5)
}
