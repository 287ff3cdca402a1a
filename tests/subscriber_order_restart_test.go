package tests

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

const (
	// orderBacklog is how many messages there are before anything happens.
	orderBacklog = 200
	// orderKeys is how many keys the messages of the order tests have.
	orderKeys = 8
	// slowWork is the time of an occasional slow handler: longer than entries wait before they
	// are released.
	slowWork = 1500 * time.Millisecond
	// longestPause is for how long nothing may be delivered although entries wait and the handlers are free.
	longestPause = 2 * time.Second
)

// orderMode is one of the ways to ask for an order.
type orderMode struct {
	name     string
	inFlight int
	keyed    bool
}

var orderModes = []orderMode{{"strict", 1, false}, {"per key", orderKeys, true}}

// settings are those of a journalChild.
func (o orderMode) settings() []string {
	settings := []string{fmt.Sprintf("IN_FLIGHT=%d", o.inFlight)}
	if o.keyed {
		settings = append(settings, "KEYED=1")
	}
	return settings
}

// slow reports whether a message is slow: one in strict order, one of each key otherwise, so that all
// handlers are at work at once.
func (o orderMode) slow(number int) bool {
	return slices.ContainsFunc([]int{210, 290}, func(first int) bool { return first <= number && number < first+o.inFlight })
}

// inversions lists the deliveries that begin after a later one of the same subscription or key.
// Excused deliveries have returned, and have no order.
func (o orderMode) inversions(got []delivered, excused map[int]bool) []string {
	last := make(map[string]delivered)
	var wrong []string
	for _, m := range got {
		key := ""
		if o.keyed {
			key = keyOf(m.payload)
		}
		n := numberOf(m.payload)
		if excused[n] {
			continue
		}
		if before, ok := last[key]; ok && n < numberOf(before.payload) {
			wrong = append(wrong, fmt.Sprintf("%d after %d", n, numberOf(before.payload)))
			continue
		}
		last[key] = m
	}
	return wrong
}

// idleTime measures for how long no handler was at work.
type idleTime struct {
	mu      sync.Mutex
	active  int
	since   time.Time
	longest time.Duration
}

func (i *idleTime) begin() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.active++; i.active == 1 && !i.since.IsZero() {
		i.longest = max(i.longest, time.Since(i.since))
	}
}

// most is the longest time so far.
func (i *idleTime) most() time.Duration {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.longest
}

func (i *idleTime) end() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.active--; i.active == 0 {
		i.since = time.Now()
	}
}

// past is the history of a group before a subscription begins.
type past struct {
	name string
	// make brings it about on a topic with the messages 0 to 199, and returns what was delivered
	// and which messages come whenever they come.
	make func(t *testing.T, s *orderScene) (got []delivered, excused map[int]bool)
	// later happens while the subscription is at work.
	later func(t *testing.T, s *orderScene)
	tune  func(*redischannels.Tuning)
	alive bool // another consumer is, as far as Redis shows
}

// orderScene is one test of the order.
type orderScene struct {
	orderMode
	server *redistest.Server
	client redis.UniversalClient
	topic  string
	tune   func(*redischannels.Tuning) // or nil
}

func newOrderScene(t *testing.T, o orderMode, tune func(*redischannels.Tuning)) *orderScene {
	t.Helper()
	server := redistest.Shared(t)
	return &orderScene{o, server, server.Client(t), redistest.Key(t), tune}
}

// config makes a subscriber ordered. All consumers of a group have the same tuning.
func (s *orderScene) config(c *redischannels.SubscriberConfig) {
	c.MaxInFlight = s.inFlight
	if s.keyed {
		c.OrderingKey = orderingKey
	}
	if s.tune != nil {
		s.tune(&c.Tuning)
	}
}

var pasts = []past{
	{name: "graceful restart", make: gracefulRestart},
	{name: "graceful restart, default tuning", make: gracefulRestart, tune: func(c *redischannels.Tuning) {
		c.MinIdle, c.ClaimInterval, c.BlockTime = redischannels.DefaultMinIdle, redischannels.DefaultClaimInterval, redischannels.DefaultBlockTime
	}, alive: true},
	{name: "crash", make: crashWhileEntriesWait},
	{name: "consumer of a crashed process", make: leftConsumer, tune: func(c *redischannels.Tuning) { c.MinIdle = time.Minute }},
	{name: "requeue", make: deadLettered, later: requeueAll},
	{name: "other consumer that takes nothing", make: stuckConsumer, tune: func(c *redischannels.Tuning) { c.MinIdle = time.Minute }, alive: true},
}

// gracefulRestart closes a subscription while entries wait in it and a handler is at work.
func gracefulRestart(t *testing.T, s *orderScene) ([]delivered, map[int]bool) {
	sub := newSub(t, s.client, s.config)
	reached, release := make(chan struct{}), make(chan struct{})
	h := handle(sub.subscribe(t, s.topic), s.inFlight, func(m delivered, _ *message.Message) bool {
		if n := numberOf(m.payload); n >= 100 {
			if n == 100 {
				close(reached)
			}
			<-release
		}
		return true
	})
	waitFor(t, reached)
	redistest.Eventually(t, soon, func() bool { return len(pendingOf(t, s.client, s.topic)) > s.inFlight+20 }, "buffered entries")
	closeDuring(t, sub, func() { close(release) })
	<-h.done
	return h.all(), nil
}

// closeDuring closes a subscriber while a handler is at work, which release lets continue.
func closeDuring(t *testing.T, sub *testSub, release func()) {
	t.Helper()
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		_ = sub.Close()
	}()
	redistest.Eventually(t, soon, func() bool { return sub.Stats()[0].State == redischannels.StateClosing }, "closing")
	release()
	waitFor(t, closed)
}

// crashWhileEntriesWait kills a process while entries wait in it and a handler is at work.
func crashWhileEntriesWait(t *testing.T, s *orderScene) ([]delivered, map[int]bool) {
	j := crashed(t, s.server, s.topic, consecutive(100, s.inFlight), s.settings()...)
	return j.all(t), nil
}

// leftConsumer leaves the name of a crashed consumer in the group, with entries that may not
// be claimed yet: they are not delivered at all.
func leftConsumer(t *testing.T, s *orderScene) ([]delivered, map[int]bool) {
	require.NoError(t, s.client.XGroupCreate(t.Context(), s.topic, "g", "0").Err())
	require.NoError(t, s.client.XGroupCreateConsumer(t.Context(), s.topic, "g", "crashed").Err())
	excused := make(map[int]bool)
	for n := range deliverTo(t, s.client, s.topic, "crashed", 20, 0) {
		excused[n] = true
	}
	return nil, excused
}

// deadLettered makes the first messages dead letters.
func deadLettered(t *testing.T, s *orderScene) ([]delivered, map[int]bool) {
	sub := newSub(t, s.client, s.config)
	excused := make(map[int]bool)
	messages := sub.subscribe(t, s.topic)
	for range orderKeys {
		msg := receive(t, messages)
		excused[numberOf(string(msg.Payload))] = true
		require.True(t, redischannels.Reject(msg, "for now"))
		msg.Nack()
	}
	redistest.Eventually(t, soon, func() bool { return s.client.XLen(t.Context(), deadStream(s.topic)).Val() == orderKeys }, "dead letters")
	sub.closeSoon(t)
	return nil, excused
}

// requeueAll gives all dead letters back to the group.
func requeueAll(t *testing.T, s *orderScene) {
	letters := newDeadLetters(t, s.client)
	results, err := letters.Requeue(t.Context(), s.topic, listIDs(t, letters, s.topic, redischannels.DeadLetterQuery{})...)
	require.NoError(t, err)
	require.Len(t, results, orderKeys)
	for _, r := range results {
		require.Equal(t, redischannels.RequeueDone, r.Outcome)
	}
}

// stuckConsumer is a living consumer that holds one message and takes nothing else.
func stuckConsumer(t *testing.T, s *orderScene) ([]delivered, map[int]bool) {
	sub := newSub(t, s.server.Client(t), s.config, inFlight(1))
	msg := receive(t, sub.subscribe(t, s.topic))
	t.Cleanup(func() { msg.Ack() })
	return nil, map[int]bool{numberOf(string(msg.Payload)): true}
}

// begin publishes the first messages, brings a past about, and returns the subscription that follows.
func (s *orderScene) begin(t *testing.T, p past) (sub *testSub, messages <-chan *message.Message, before []delivered, excused map[int]bool) {
	t.Helper()
	publish(t, s.client, s.topic, keyedBatch(orderKeys, 0, orderBacklog-1)...)
	before, excused = p.make(t, s)
	sub = newSub(t, s.client, s.config)
	messages = sub.subscribe(t, s.topic)
	if p.later != nil {
		p.later(t, s)
	}
	return sub, messages, before, excused
}

// missing are the messages that were not delivered.
func missing(entries int, got []delivered, excused map[int]bool) (left []int) {
	seen := make(map[int]bool)
	for _, m := range got {
		seen[numberOf(m.payload)] = true
	}
	for n := range entries {
		if !seen[n] && !excused[n] {
			left = append(left, n)
		}
	}
	return left
}

// A subscription released entries although there was no consumer to take them, because the name of a
// consumer that was closed, had crashed or had requeued counted as a living one for an hour. It
// released the older ones and continued with the younger ones, and the order was lost. It takes no
// fault: a handler that takes 1.5 s now and then is enough.
func TestSubscriber_OrderAfterARestart(t *testing.T) {
	t.Parallel()
	for _, o := range orderModes {
		for _, p := range pasts {
			t.Run(o.name+"/"+p.name, func(t *testing.T) {
				t.Parallel()
				scene := newOrderScene(t, o, p.tune)
				sub, messages, before, excused := scene.begin(t, p)
				const entries = orderBacklog + 160
				var idle idleTime
				h := handle(messages, o.inFlight, func(m delivered, _ *message.Message) bool {
					idle.begin()
					defer idle.end()
					if o.slow(numberOf(m.payload)) {
						time.Sleep(slowWork) // the handler's work
					}
					return true
				})
				for n := orderBacklog; n < entries; n++ {
					publish(t, scene.client, scene.topic, keyedPayload(n%orderKeys, n))
					<-time.After(10 * time.Millisecond) // they come one by one
				}
				all := func() []delivered { return append(slices.Clone(before), h.all()...) }
				redistest.Eventually(t, 2*soon, func() bool { return len(missing(entries, all(), excused)) == 0 }, "everything is delivered")
				assert.Empty(t, firstOf(o.inversions(all(), excused)), "the order is lost")
				assert.Less(t, idle.most(), longestPause, "nothing was delivered although entries wait")
				if !p.alive {
					assert.Zero(t, len(sub.events.of(redischannels.EventReleased)), "releases, although there is no other consumer")
				}
			})
		}
	}
}

// An application that takes nothing for a while lost its offer to a consumer that was not there,
// and got nothing for more than a ClaimInterval, 18 s with the default, although it asked for it.
func TestSubscriber_NothingPausesAfterARestart(t *testing.T) {
	t.Parallel()
	for _, o := range orderModes {
		for _, p := range pasts {
			if p.name == "graceful restart, default tuning" {
				continue
			}
			t.Run(o.name+"/"+p.name, func(t *testing.T) {
				t.Parallel()
				scene := newOrderScene(t, o, func(c *redischannels.Tuning) { c.ClaimInterval = redischannels.DefaultClaimInterval })
				_, messages, before, excused := scene.begin(t, p)
				for len(missing(orderBacklog, before, excused)) > 0 {
					select {
					case msg := <-messages:
						payload := string(msg.Payload)
						before = append(before, delivered{id: entryIDOf(t, msg), count: countOf(t, msg), payload: payload})
						msg.Ack()
						if numberOf(payload) == 150 {
							time.Sleep(slowWork) // the application's work
						}
					case <-time.After(longestPause):
						require.FailNow(t, "nothing is delivered", "for %s, after %q, although entries wait", longestPause, before[len(before)-1].payload)
					}
				}
				require.Empty(t, firstOf(o.inversions(before, excused)), "the order is lost")
			})
		}
	}
}

// A nacked message waits for its retry when its consumer closes. The next one delivers it first,
// now or when its delay is over: the messages behind it overtook it.
func TestSubscriber_ANackedMessageHoldsBackTheRestAfterARestart(t *testing.T) {
	t.Parallel()
	for _, o := range orderModes {
		t.Run(o.name, func(t *testing.T) {
			t.Parallel()
			scene := newOrderScene(t, o, nil)
			publish(t, scene.client, scene.topic, keyedBatch(1, 0, 9)...)
			first := newSub(t, scene.client, scene.config)
			msg := receive(t, first.subscribe(t, scene.topic))
			require.True(t, redischannels.RetryAfter(msg, time.Second))
			msg.Nack()
			redistest.Eventually(t, soon, func() bool { return first.Stats()[0].BackingOff == 1 }, "the nack")
			first.closeSoon(t)

			var got []int
			for _, payload := range receiveAcked(t, newSub(t, scene.client, scene.config).subscribe(t, scene.topic), 10) {
				got = append(got, numberOf(payload))
			}
			require.Equal(t, consecutive(0, 10), got)
		})
	}
}
