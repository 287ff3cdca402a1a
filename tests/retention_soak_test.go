package tests

import (
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/keys"
	"github.com/flaminco/redischannels/internal/redistest"
	"github.com/flaminco/redischannels/internal/retention"
)

// received are the payloads that a group has received, each acknowledged.
type received struct {
	mu  sync.Mutex
	all map[string]bool
}

func (r *received) from(messages <-chan *message.Message) {
	for msg := range messages {
		r.mu.Lock()
		r.all[string(msg.Payload)] = true
		r.mu.Unlock()
		msg.Ack()
	}
}

func (r *received) len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.all)
}

// Processes that trim are killed at random, and groups deleted and re-created meanwhile: an entry is lost, or reported
// as lost, or the stream grows.
func TestSoakRetention_TrimmersAreKilled(t *testing.T) {
	if os.Getenv("SOAK") == "" {
		t.Skip("SOAK is not set: this is for make soak")
	}
	soak, err := time.ParseDuration(os.Getenv("SOAK"))
	require.NoError(t, err)
	server := redistest.Start(t)
	client, topic := server.Client(t), redistest.Key(t)
	names := []string{"g", "other"}
	groups := make([]*received, len(names))
	subs := make([]*testSub, len(names))
	for i, name := range names {
		groups[i] = &received{all: map[string]bool{}}
		subs[i] = newSub(t, client, inFlight(100), func(c *redischannels.SubscriberConfig) { c.ConsumerGroup = name })
		go groups[i].from(subs[i].subscribe(t, topic))
	}
	keepers := make([]*redistest.Child, 3)
	for i := range keepers {
		keepers[i] = startKeeper(t, server, topic, "CHILD_TRIM=1")
	}
	published, kills, deleted := 0, 0, 0
	of := keys.Topic{Name: topic, Base: "{" + topic + "}"}
	for end := time.Now().Add(soak); time.Now().Before(end); {
		for range 20 {
			payloads := make([]string, 100)
			for i := range payloads {
				payloads[i] = fmt.Sprint(published + i)
			}
			publish(t, client, topic, payloads...)
			published += len(payloads)
			_, err := retention.Operate(t.Context(), client, of, "soak", keepNothing)
			require.NoError(t, err)
		}
		if rand.IntN(3) == 0 {
			require.NoError(t, client.XGroupDestroy(t.Context(), topic, names[rand.IntN(len(names))]).Err())
			deleted++
		}
		i := rand.IntN(len(keepers))
		keepers[i].Kill()
		kills++
		keepers[i] = startKeeper(t, server, topic, "CHILD_TRIM=1")
		for _, group := range groups {
			redistest.Eventually(t, 2*soon, func() bool { return group.len() == published }, "all %d are received", published)
		}
		redistest.Eventually(t, soon, func() bool { // a group may be missing still, and acknowledgements on their way
			_, err := retention.Operate(t.Context(), client, of, "soak", keepNothing)
			return err == nil && client.XLen(t.Context(), topic).Val() <= 300
		}, "what all have acknowledged is removed")
	}
	t.Logf("%d messages, %d kills, %d groups deleted", published, kills, deleted)
	for _, sub := range subs {
		sub.closeSoon(t)
		sub.events.none(t, redischannels.EventTrimmed)
	}
}
