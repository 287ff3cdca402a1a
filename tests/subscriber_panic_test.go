package tests

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// panicking panics on some entries.
type panicking struct {
	redischannels.WatermillMarshaler
}

func (p panicking) Unmarshal(e redischannels.Entry) (*message.Message, error) {
	msg, err := p.WatermillMarshaler.Unmarshal(e)
	if err == nil && strings.HasPrefix(string(msg.Payload), "codec") {
		panic("codec")
	}
	return msg, err
}

// A panic in what the application supplies kills the process, or the loop that called it.
func TestSubscriber_PanicsOfTheApplication(t *testing.T) {
	t.Parallel()
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	seen := &events{t: t}
	sub := newSub(t, client, inFlight(2), func(c *redischannels.SubscriberConfig) {
		c.Unmarshaler = panicking{}
		c.MaxDeliveries = 2
		c.OrderingKey = func(msg *message.Message) string {
			if strings.HasPrefix(string(msg.Payload), "key") {
				panic("key")
			}
			return ""
		}
		c.OnEvent = func(e redischannels.Event) {
			seen.add(e)
			panic("event")
		}
	})
	router, err := message.NewRouter(message.RouterConfig{CloseTimeout: time.Second}, watermill.NopLogger{})
	require.NoError(t, err)
	router.AddMiddleware(func(next message.HandlerFunc) message.HandlerFunc { // as Watermill's Recoverer
		return func(msg *message.Message) (out []*message.Message, err error) {
			defer func() {
				if r := recover(); r != nil {
					err = fmt.Errorf("panic: %v", r)
				}
			}()
			return next(msg)
		}
	})
	var mu sync.Mutex
	var handled []string
	router.AddConsumerHandler("h", topic, sub, func(msg *message.Message) error {
		mu.Lock()
		handled = append(handled, string(msg.Payload))
		mu.Unlock()
		if strings.HasPrefix(string(msg.Payload), "handler") {
			panic("handler")
		}
		return nil
	})
	ids := publish(t, client, topic, "good1", "codec", "good2", "key", "good3", "handler", "good4")
	ran := make(chan error, 1)
	go func() { ran <- router.Run(context.WithoutCancel(t.Context())) }()
	<-router.Running()
	eventuallyRead(t, client, topic)
	eventuallyPending(t, client, topic, 0)
	require.NoError(t, router.Close())
	require.NoError(t, <-ran)

	mu.Lock()
	defer mu.Unlock()
	require.Equal(t, []string{"good1", "good2", "good3", "handler", "handler", "good4"}, handled, "one key, so in order")
	reasons := make(map[string]string)
	dead, err := client.XRange(t.Context(), deadStream(topic), "-", "+").Result()
	require.NoError(t, err)
	for _, d := range dead {
		reasons[d.Values["_dead_entry_id"].(string)] = d.Values["_dead_reason"].(string)
	}
	require.Len(t, reasons, 3)
	require.Contains(t, reasons[ids[1]], "panicked")
	require.Contains(t, reasons[ids[3]], "panicked")
	require.Contains(t, reasons[ids[5]], "delivered 2 times")
	require.Len(t, seen.of(redischannels.EventDeadLettered), 3)
}
