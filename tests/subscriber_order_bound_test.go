package tests

import (
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// perKey is the mode of these tests.
var perKey = orderModes[1]

// heldHead is a handler that is quick with everything but the first message of a topic.
type heldHead struct {
	backOff time.Duration // the first message is nacked with it; or, if it is 0,
	free    chan struct{} // it is in its handler until this is closed
	once    sync.Once
}

func holdHead(backOff time.Duration) *heldHead {
	return &heldHead{backOff: backOff, free: make(chan struct{})}
}

func (h *heldHead) handle(m delivered, msg *message.Message) bool {
	if numberOf(m.payload) != 0 {
		return true
	}
	if h.backOff == 0 {
		<-h.free
		return true
	}
	if m.count == 1 {
		redischannels.RetryAfter(msg, h.backOff)
		return false
	}
	return true
}

func (h *heldHead) release() { h.once.Do(func() { close(h.free) }) }

// ofKey returns the deliveries of a key.
func ofKey(got []delivered, key string) []delivered {
	return slices.DeleteFunc(slices.Clone(got), func(m delivered) bool { return keyOf(m.payload) != key })
}

// othersDelivered waits until the messages from first to last are delivered, none of them of the
// key of the head.
func othersDelivered(t *testing.T, got func() []delivered, first, last int) {
	t.Helper()
	redistest.Eventually(t, soon/2, func() bool {
		return len(missing(last+1, got(), numberSet(0, first))) == 0
	}, "the other keys wait for one that is blocked")
}

// readEverything reports whether the group "g" was given every entry of the topic.
func readEverything(t *testing.T, client redis.UniversalClient, topic string) bool {
	t.Helper()
	info, err := client.XInfoStream(t.Context(), topic).Result()
	require.NoError(t, err)
	return groupOf(t, client, topic).LastDeliveredID == info.LastGeneratedID
}

// finished waits until the group "g" has read everything and nothing is pending. It asks for
// numbers only: a list of 1,500 entries every 5 ms would delay what it looks at.
func finished(t *testing.T, scene *orderScene) {
	t.Helper()
	redistest.Eventually(t, 2*soon, func() bool {
		return readEverything(t, scene.client, scene.topic) && groupOf(t, scene.client, scene.topic).Pending == 0
	}, "everything is acknowledged")
}

// numberSet has the numbers from first up to end.
func numberSet(first, end int) map[int]bool {
	set := make(map[int]bool)
	for n := first; n < end; n++ {
		set[n] = true
	}
	return set
}

// The entries of one key, whose first one waits for its retry or is in its handler, fill the window,
// and all other keys stop. They are bounded, and those beyond the bound come in their order when the
// first one is done: here, at the next consumer, or after a crash.
func TestSubscriber_AKeyThatIsHeldUpStopsNoOther(t *testing.T) {
	t.Parallel()
	const backlog, others = 1500, 140
	payloads := keyedBatch(1, 0, backlog-1)
	for n := range others {
		payloads = append(payloads, keyedPayload(1+n%7, backlog+n))
	}
	begin := func(t *testing.T) *orderScene {
		scene := newOrderScene(t, perKey, nil)
		publish(t, scene.client, scene.topic, payloads...)
		return scene
	}
	finish := func(t *testing.T, scene *orderScene, all func() []delivered) {
		t.Helper()
		finished(t, scene)
		require.Zero(t, len(missing(len(payloads), all(), nil)), "messages that were not delivered")
		require.Empty(t, firstOf(perKey.inversions(all(), nil)), "the order is lost")
	}

	for name, backOff := range map[string]time.Duration{"backing off": 3 * time.Second, "in flight": 0} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			scene, head := begin(t), holdHead(backOff)
			defer head.release()
			h := handle(newSub(t, scene.client, scene.config).subscribe(t, scene.topic), perKey.inFlight, head.handle)
			othersDelivered(t, h.all, backlog, len(payloads)-1)
			require.Equal(t, 1, len(ofKey(h.all(), "k0")), "the others came only when the head was done")
			head.release()
			finish(t, scene, h.all)
			requireCounts(t, nil, h.all())
		})
	}
	t.Run("graceful restart", func(t *testing.T) {
		t.Parallel()
		scene, head := begin(t), holdHead(0)
		defer head.release()
		sub := newSub(t, scene.client, scene.config)
		first := handle(sub.subscribe(t, scene.topic), perKey.inFlight, head.handle)
		othersDelivered(t, first.all, backlog, len(payloads)-1)
		closeDuring(t, sub, head.release)
		second := handle(newSub(t, scene.client, scene.config).subscribe(t, scene.topic), perKey.inFlight, work(0))
		all := func() []delivered { return append(first.all(), second.all()...) }
		finish(t, scene, all)
		requireCounts(t, nil, all())
	})
	t.Run("crash", func(t *testing.T) {
		t.Parallel()
		scene := begin(t)
		child, j := startJournal(t, scene.server, scene.topic, append(perKey.settings(), "HOLD=0")...)
		othersDelivered(t, func() []delivered { return j.all(t) }, backlog, len(payloads)-1)
		// Messages that were delivered and are not acknowledged yet would be delivered again, and
		// count as an inversion.
		redistest.Eventually(t, soon, func() bool { return len(pendingOf(t, scene.client, scene.topic)) <= backlog }, "acknowledgements")
		child.Kill()
		waitIdle(t, scene.client, scene.topic, testMinIdle)
		before := j.all(t)
		second := handle(newSub(t, scene.client, scene.config).subscribe(t, scene.topic), perKey.inFlight, work(0))
		finish(t, scene, func() []delivered { return append(slices.Clone(before), second.all()...) })
		requireCounts(t, before, second.all())
	})
	t.Run("large entries", func(t *testing.T) {
		t.Parallel()
		// The window is full in bytes long before it is in numbers.
		const large, size = 200, 16 << 10
		scene, head := newOrderScene(t, perKey, func(c *redischannels.Tuning) { c.PrefetchBytes = 1 << 20 }), holdHead(0)
		defer head.release()
		for n := range large {
			publish(t, scene.client, scene.topic, keyedPayload(0, n, strings.Repeat("x", size)))
		}
		publish(t, scene.client, scene.topic, payloads[backlog:]...)
		h := handle(newSub(t, scene.client, scene.config).subscribe(t, scene.topic), perKey.inFlight, head.handle)
		redistest.Eventually(t, soon/2, func() bool { return h.len() == 1+others }, "the other keys wait for one that is blocked")
		head.release()
		finished(t, scene)
		require.Empty(t, firstOf(perKey.inversions(h.all(), nil)), "the order is lost")
		require.Equal(t, large+others, h.len())
	})
}

// Entries of a blocked key wait for longer than a second: an idle consumer receives some of them.
// The order of each of the two is correct, even when entries return.
func TestSubscriber_AnIdleConsumerSharesTheEntriesOfOneKey(t *testing.T) {
	t.Parallel()
	const waiting, share = 426, 100
	for name, backOff := range map[string]time.Duration{"backing off": 4 * time.Second, "in flight": 0} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			scene, head := newOrderScene(t, perKey, func(c *redischannels.Tuning) { c.MinIdle = time.Minute }), holdHead(backOff)
			defer head.release()
			first := handle(newSub(t, scene.client, scene.config).subscribe(t, scene.topic), perKey.inFlight, head.handle)
			publish(t, scene.client, scene.topic, keyedBatch(1, 0, waiting)...)
			// More of other keys makes it fetch ahead, until all is with the first consumer.
			for n := waiting + 1; n < waiting+100 || !readEverything(t, scene.client, scene.topic); n++ {
				require.Less(t, n, 10*waiting, "the first consumer does not read everything")
				publish(t, scene.client, scene.topic, keyedPayload(1+n%7, n))
			}
			require.Equal(t, 1, len(ofKey(first.all(), "k0")), "the head is blocked")

			second := handle(newSub(t, scene.server.Client(t), scene.config).subscribe(t, scene.topic), perKey.inFlight, work(0))
			redistest.Eventually(t, soon/2, func() bool { return len(ofKey(second.all(), "k0")) >= share },
				"the second consumer has a share of %d entries that wait", waiting)
			require.Equal(t, 1, len(ofKey(first.all(), "k0")), "the head is blocked still")
			head.release()
			finished(t, scene)
			require.Empty(t, firstOf(perKey.inversions(first.all(), nil)), "the order of the first is lost")
			require.Empty(t, firstOf(perKey.inversions(second.all(), nil)), "the order of the second is lost")
			require.Zero(t, len(missing(waiting+1, append(first.all(), second.all()...), nil)), "messages that were not delivered")
		})
	}
}
