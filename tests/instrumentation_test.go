package tests

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// spanKey is the key of the value that an observer puts into contexts.
type spanKey struct{}

// observer records what an Instrumentation is called with.
type observer struct {
	t *testing.T

	mu        sync.Mutex
	published []error
	started   []redischannels.Processing
	ended     []redischannels.ProcessEnd
}

func (o *observer) PublishStart(ctx context.Context, p redischannels.Publication) (context.Context, message.Metadata) {
	return context.WithValue(ctx, spanKey{}, len(p.Messages)), message.Metadata{"trace": fmt.Sprint("of ", ctx.Value(spanKey{}))}
}

func (o *observer) PublishEnd(ctx context.Context, p redischannels.Publication, took time.Duration, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	require.Equal(o.t, len(p.Messages), ctx.Value(spanKey{}))
	require.Positive(o.t, took)
	o.published = append(o.published, err)
}

func (o *observer) ProcessStart(ctx context.Context, p redischannels.Processing) context.Context {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.started = append(o.started, p)
	return context.WithValue(ctx, spanKey{}, fmt.Sprint("span ", len(o.started)))
}

func (o *observer) ProcessEnd(ctx context.Context, p redischannels.Processing, end redischannels.ProcessEnd) {
	o.mu.Lock()
	defer o.mu.Unlock()
	require.Contains(o.t, ctx.Value(spanKey{}), "span ")
	require.Less(o.t, end.Message, len(p.Messages))
	if end.Outcome == redischannels.ProcessWithdrawn {
		require.Zero(o.t, end.Duration)
	} else {
		require.Positive(o.t, end.Duration)
	}
	end.Duration = 0
	o.ended = append(o.ended, end)
}

// ends waits for n ends and returns them.
func (o *observer) ends(n int) []redischannels.ProcessEnd {
	o.t.Helper()
	var ends []redischannels.ProcessEnd
	redistest.Eventually(o.t, soon, func() bool {
		o.mu.Lock()
		defer o.mu.Unlock()
		ends = append(ends[:0], o.ended...)
		return len(ends) >= n
	}, "%d deliveries end", n)
	return ends
}

// processed waits until one message has been delivered as often as there are outcomes, and compares.
func (o *observer) processed(outcomes ...redischannels.ProcessOutcome) []redischannels.ProcessEnd {
	o.t.Helper()
	ends := o.ends(len(outcomes))
	got := make([]redischannels.ProcessOutcome, len(ends))
	for i, end := range ends {
		got[i] = end.Outcome
	}
	require.Equal(o.t, outcomes, got)
	o.mu.Lock()
	defer o.mu.Unlock()
	require.Len(o.t, o.started, len(ends))
	return ends
}

func observed(o *observer) func(*redischannels.SubscriberConfig) {
	return func(c *redischannels.SubscriberConfig) { c.Instrumentation = o }
}

func observedPublisher(t *testing.T, client redis.UniversalClient, o redischannels.Instrumentation) *redischannels.Publisher {
	t.Helper()
	pub, err := redischannels.NewPublisher(redischannels.PublisherConfig{Client: client, Instrumentation: o}, nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, pub.Close()) })
	return pub
}

// The metadata of a publication is in Redis, and not in the message of the caller, who may publish it again.
func TestInstrumentation_PublishAddsMetadataToACopy(t *testing.T) {
	t.Parallel()
	o, client, topic := &observer{t: t}, redistest.Shared(t).Client(t), redistest.Key(t)
	pub := observedPublisher(t, client, o)
	parent := context.WithValue(t.Context(), spanKey{}, "caller")
	newMessage := func() *message.Message {
		msg := message.NewMessage(watermill.NewUUID(), []byte("x"))
		msg.Metadata.Set("own", "kept")
		msg.SetContext(parent)
		return msg
	}
	msg := newMessage()
	require.NoError(t, pub.Publish(topic, msg))
	require.Equal(t, message.Metadata{"own": "kept"}, msg.Metadata)
	_, err := pub.Append(parent, topic, newMessage(), newMessage())
	require.NoError(t, err)
	_, err = pub.AppendResults(parent, topic, newMessage())
	require.NoError(t, err)
	require.ErrorIs(t, pub.Publish(topic, newMessage(), nil), redischannels.ErrInvalidArgument)
	large := newMessage()
	large.SetContext(canceled(t, parent))
	failed := pub.Publish(topic, large)
	require.Error(t, failed)
	require.Equal(t, []error{nil, nil, nil, failed}, o.published)

	messages := newSub(t, client, fanOut, func(c *redischannels.SubscriberConfig) { c.StartFrom = redischannels.Oldest }).subscribe(t, topic)
	for range 4 {
		got := receive(t, messages)
		require.Equal(t, message.Metadata{"own": "kept", "trace": "of caller"}, got.Metadata)
		got.Ack()
	}
	noMessage(t, messages)
}

func canceled(t *testing.T, ctx context.Context) context.Context {
	t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	cancel()
	return ctx
}

// Each outcome of the deliveries of one message, which the application ends in turn.
func TestInstrumentation_OutcomesOfSubscribe(t *testing.T) {
	t.Parallel()
	type end = func(msg *message.Message)
	ack := func(msg *message.Message) { msg.Ack() }
	nack := func(msg *message.Message) { msg.Nack() }
	for name, test := range map[string]struct {
		change   func(*redischannels.SubscriberConfig)
		ends     []end
		outcomes []redischannels.ProcessEnd
	}{
		"retry": {func(*redischannels.SubscriberConfig) {}, []end{nack, func(msg *message.Message) {
			redischannels.RetryAfter(msg, time.Millisecond)
			msg.Nack()
		}, func(msg *message.Message) {
			redischannels.Postpone(msg, 2*time.Millisecond)
			msg.Nack()
		}, ack}, []redischannels.ProcessEnd{
			{Outcome: redischannels.ProcessNacked, Delay: -1},
			{Outcome: redischannels.ProcessNacked, Delay: time.Millisecond},
			{Outcome: redischannels.ProcessReleased, Delay: 2 * time.Millisecond},
			{Outcome: redischannels.ProcessAcked},
		}},
		"reject": {func(*redischannels.SubscriberConfig) {}, []end{func(msg *message.Message) {
			redischannels.Reject(msg, "why")
			msg.Nack()
		}}, []redischannels.ProcessEnd{{Outcome: redischannels.ProcessDeadLettered, Reason: "why"}}},
		"last delivery": {func(c *redischannels.SubscriberConfig) { c.MaxDeliveries = 2 }, []end{nack, nack}, []redischannels.ProcessEnd{
			{Outcome: redischannels.ProcessNacked, Delay: -1}, {Outcome: redischannels.ProcessDeadLettered},
		}},
		"without a group": {func(c *redischannels.SubscriberConfig) {
			fanOut(c)
			c.MaxDeliveries, c.StartFrom = 1, redischannels.Oldest
		}, []end{nack}, []redischannels.ProcessEnd{{Outcome: redischannels.ProcessSkipped}}},
		"100 at once": {inFlight(100), []end{nack, ack}, []redischannels.ProcessEnd{
			{Outcome: redischannels.ProcessNacked, Delay: -1}, {Outcome: redischannels.ProcessAcked},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o, client, topic := &observer{t: t}, redistest.Shared(t).Client(t), redistest.Key(t)
			ids := publish(t, client, topic, "x")
			messages := newSub(t, client, observed(o), test.change).subscribe(t, topic)
			for i, end := range test.ends {
				msg := receive(t, messages)
				require.Equal(t, fmt.Sprint("span ", i+1), msg.Context().Value(spanKey{}))
				id, _ := redischannels.EntryIDFromContext(msg.Context())
				require.Equal(t, ids[0], id)
				end(msg)
			}
			require.Equal(t, test.outcomes, o.ends(len(test.outcomes)))
			for i, p := range o.started {
				require.Equal(t, topic, p.Topic)
				require.Equal(t, ids[0], p.Messages[0].ID)
				require.Contains(t, []int{i + 1, i}, p.Messages[0].DeliveryCount) // Postpone does not count
			}
		})
	}
}

// The end of a handler behind HandlerTimeout was counted a second time.
func TestInstrumentation_TimeoutEndsOnce(t *testing.T) {
	t.Parallel()
	o, client, topic := &observer{t: t}, redistest.Shared(t).Client(t), redistest.Key(t)
	publish(t, client, topic, "x")
	sub := newSub(t, client, observed(o), func(c *redischannels.SubscriberConfig) { c.HandlerTimeout = 10 * time.Millisecond })
	messages := sub.subscribe(t, topic)
	msg := receive(t, messages)
	waitDone(t, msg.Context())
	o.processed(redischannels.ProcessTimedOut)
	msg.Nack()
	again := receive(t, messages)
	again.Ack()
	o.processed(redischannels.ProcessTimedOut, redischannels.ProcessAcked)
}

// What is offered, and what is not acknowledged within DrainTimeout, ends with the subscription.
func TestInstrumentation_Close(t *testing.T) {
	t.Parallel()
	o, client, topic := &observer{t: t}, redistest.Shared(t).Client(t), redistest.Key(t)
	publish(t, client, topic, "x", "y")
	sub := newSub(t, client, observed(o), inFlight(10), func(c *redischannels.SubscriberConfig) { c.Tuning.DrainTimeout = time.Millisecond })
	messages := sub.subscribe(t, topic)
	receive(t, messages)
	redistest.Eventually(t, soon, func() bool {
		o.mu.Lock()
		defer o.mu.Unlock()
		return len(o.started) == 2
	}, "the second message is offered")
	sub.closeSoon(t)
	o.processed(redischannels.ProcessWithdrawn, redischannels.ProcessAbandoned)
}

// A batch is one Processing, whose context is that of its function and of each delivery.
func TestInstrumentation_Batches(t *testing.T) {
	t.Parallel()
	o := &observer{t: t}
	hub := newHubOf(t, func(c *redischannels.HubConfig) { c.Instrumentation = o })
	channel := streamOf[int](t, hub, redistest.Key(t))
	_, err := channel.Writer().WriteAll(t.Context(), 1, 2, 3)
	require.NoError(t, err)
	require.Equal(t, []error{nil}, o.published)
	ctx, cancel := context.WithCancel(soonCtx(t))
	require.NoError(t, channel.Reader().HandleBatch(ctx, func(ctx context.Context, batch []redischannels.Delivery[int]) error {
		require.Equal(t, "span 1", ctx.Value(spanKey{}))
		require.Len(t, batch, 3)
		for _, d := range batch {
			require.Equal(t, "span 1", d.Context().Value(spanKey{}))
		}
		require.NoError(t, batch[1].Reject("no"))
		cancel()
		return nil
	}, redischannels.BatchConfig{Size: 3, Wait: soon}))
	require.Equal(t, []redischannels.ProcessEnd{
		{Message: 1, Left: 2, Outcome: redischannels.ProcessDeadLettered, Reason: "no"},
		{Message: 0, Left: 1, Outcome: redischannels.ProcessAcked},
		{Message: 2, Left: 0, Outcome: redischannels.ProcessAcked},
	}, o.ends(3))
	require.Len(t, o.started, 1)
	require.Len(t, o.started[0].Messages, 3)
	require.Equal(t, "g", o.started[0].Group)

	topic := redistest.Key(t)
	publish(t, hub.client, topic, "a", "b")
	o = &observer{t: t}
	sub := newSub(t, hub.client, observed(o), inFlight(2))
	batches, err := sub.SubscribeBatch(t.Context(), topic, redischannels.BatchConfig{Size: 2, Wait: 100 * time.Millisecond})
	require.NoError(t, err)
	for n := 0; n < 2; {
		for _, msg := range receiveBatch(t, batches) {
			require.Contains(t, msg.Context().Value(spanKey{}), "span ")
			msg.Ack()
			n++
		}
	}
	o.ends(2)
}

// Each way to read, and a channel over a subscriber of this module: every delivery is observed once.
func TestInstrumentation_Readers(t *testing.T) {
	t.Parallel()
	o := &observer{t: t}
	hub := newHubOf(t, func(c *redischannels.HubConfig) { c.Instrumentation = o })
	handle := func(middleware ...message.HandlerMiddleware) func(*testing.T, *redischannels.Reader[int]) {
		return func(t *testing.T, r *redischannels.Reader[int]) {
			ctx, cancel := context.WithCancel(context.WithValue(soonCtx(t), spanKey{}, "of Handle"))
			require.NoError(t, r.Handle(ctx, func(ctx context.Context, _ int) error {
				require.Contains(t, ctx.Value(spanKey{}), "span ")
				require.Equal(t, "orders", message.HandlerNameFromCtx(ctx))
				cancel()
				return nil
			}, redischannels.HandleConfig{Name: "orders", Middleware: middleware}))
		}
	}
	ways := []func(*testing.T, *redischannels.Reader[int]){
		handle(), handle(redischannels.HandlerErrors),
		func(t *testing.T, r *redischannels.Reader[int]) {
			d, err := r.Receive(soonCtx(t))
			require.NoError(t, err)
			require.Contains(t, d.Context().Value(spanKey{}), "span ")
			require.NoError(t, d.Ack())
		},
		func(t *testing.T, r *redischannels.Reader[int]) {
			_, err := r.Read(soonCtx(t))
			require.NoError(t, err)
		},
		func(t *testing.T, r *redischannels.Reader[int]) {
			ctx, cancel := context.WithCancel(soonCtx(t))
			defer cancel()
			for _, err := range r.All(ctx) {
				require.NoError(t, err)
				cancel()
			}
		},
		func(t *testing.T, r *redischannels.Reader[int]) {
			batch, err := r.ReceiveBatch(soonCtx(t), 1, 0)
			require.NoError(t, err)
			require.NoError(t, batch[0].Ack())
		},
	}
	want := 0
	for i, read := range ways {
		key := redistest.Key(t)
		own := streamOf[int](t, hub, fmt.Sprint(key, i))
		_, err := own.Writer().Write(t.Context(), 1)
		require.NoError(t, err)
		read(t, own.Reader())
		for _, decorate := range []bool{false, true} {
			topic := fmt.Sprint(key, i, decorate)
			var sub message.Subscriber = newSub(t, hub.client, observed(o)).Subscriber
			if decorate {
				sub = struct{ message.Subscriber }{sub}
			}
			pub := observedPublisher(t, hub.client, o)
			channel, err := redischannels.NewChannel(pub, sub, topic, redischannels.ChannelConfig[int]{})
			require.NoError(t, err)
			_, err = channel.Writer().Write(t.Context(), 1)
			require.NoError(t, err)
			read(t, channel.Reader())
			require.NoError(t, channel.Close())
		}
		want += 3
		ends := o.ends(want)
		require.Len(t, ends, want, "way %d", i)
		for _, end := range ends {
			require.Equal(t, redischannels.ProcessAcked, end.Outcome)
		}
	}
	require.Len(t, o.started, want)
	require.Len(t, o.published, want)
}

func TestInstrumentation_PubSub(t *testing.T) {
	t.Parallel()
	o, client, topic := &observer{t: t}, redistest.Shared(t).Client(t), redistest.Key(t)
	sub := newPubSub(t, client, func(c *redischannels.PubSubSubscriberConfig) { c.Instrumentation = o })
	messages, err := sub.Subscribe(t.Context(), topic)
	require.NoError(t, err)
	pub := newPubSubPub(t, client, func(c *redischannels.PubSubPublisherConfig) { c.Instrumentation = o })
	msg := message.NewMessage(watermill.NewUUID(), []byte("x"))
	require.NoError(t, pub.Publish(topic, msg))
	require.Empty(t, msg.Metadata)
	first := receive(t, messages)
	require.Equal(t, "span 1", first.Context().Value(spanKey{}))
	require.Equal(t, "of <nil>", first.Metadata.Get("trace"))
	first.Nack()
	receive(t, messages).Ack()
	_, err = pub.Send(t.Context(), topic, msg)
	require.NoError(t, err)
	rejected := receive(t, messages)
	redischannels.Reject(rejected, "no")
	rejected.Nack()
	ends := o.processed(redischannels.ProcessNacked, redischannels.ProcessAcked, redischannels.ProcessSkipped)
	require.Equal(t, "no", ends[2].Reason)
	require.True(t, o.started[0].PubSub)
	require.Equal(t, msg.UUID, o.started[0].Messages[0].ID)
	require.Equal(t, []error{nil, nil}, o.published)
}

// faulty panics in each method.
type faulty struct{}

func (faulty) PublishStart(context.Context, redischannels.Publication) (context.Context, message.Metadata) {
	panic("PublishStart")
}
func (faulty) PublishEnd(context.Context, redischannels.Publication, time.Duration, error) {
	panic("PublishEnd")
}
func (faulty) ProcessStart(context.Context, redischannels.Processing) context.Context {
	panic("ProcessStart")
}
func (faulty) ProcessEnd(context.Context, redischannels.Processing, redischannels.ProcessEnd) {
	panic("ProcessEnd")
}

// careless returns nil contexts.
type careless struct{ faulty }

func (careless) PublishStart(context.Context, redischannels.Publication) (context.Context, message.Metadata) {
	return nil, nil
}
func (careless) ProcessStart(context.Context, redischannels.Processing) context.Context { return nil }

// A panic in an Instrumentation ended the process: it is called by goroutines of the library.
func TestInstrumentation_Panics(t *testing.T) {
	t.Parallel()
	for _, bad := range []redischannels.Instrumentation{faulty{}, careless{}} {
		client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
		pub := observedPublisher(t, client, bad)
		require.NoError(t, pub.Publish(topic, message.NewMessage(watermill.NewUUID(), []byte("x"))))
		sub := newSub(t, client, func(c *redischannels.SubscriberConfig) { c.Instrumentation = bad })
		messages := sub.subscribe(t, topic)
		msg := receive(t, messages)
		require.Nil(t, msg.Context().Value(spanKey{}))
		msg.Ack()
		e := sub.events.wait(t, redischannels.EventError)
		require.ErrorContains(t, e.Err, "panic in Instrumentation.Process")
		eventuallyPending(t, client, topic, 0)

		live := newPubSub(t, client, func(c *redischannels.PubSubSubscriberConfig) { c.Instrumentation = bad })
		lively, err := live.Subscribe(t.Context(), topic)
		require.NoError(t, err)
		sending := newPubSubPub(t, client, func(c *redischannels.PubSubPublisherConfig) { c.Instrumentation = bad })
		require.NoError(t, sending.Publish(topic, message.NewMessage(watermill.NewUUID(), []byte("x"))))
		receive(t, lively).Ack()
		live.events.wait(t, redischannels.EventError)
	}
}

// Two that are joined see the contexts and the metadata of each other.
func TestInstrumentation_Join(t *testing.T) {
	t.Parallel()
	require.Nil(t, redischannels.JoinInstrumentation(nil, nil))
	first, second := &observer{t: t}, &observer{t: t}
	require.Same(t, first, redischannels.JoinInstrumentation(nil, first))
	both := redischannels.JoinInstrumentation(first, second)
	client, topic := redistest.Shared(t).Client(t), redistest.Key(t)
	require.NoError(t, observedPublisher(t, client, both).Publish(topic, message.NewMessage(watermill.NewUUID(), []byte("x"))))
	messages := newSub(t, client, func(c *redischannels.SubscriberConfig) { c.Instrumentation = both }).subscribe(t, topic)
	msg := receive(t, messages)
	require.Equal(t, "of 1", msg.Metadata.Get("trace"), "of the context of the first")
	msg.Ack()
	for _, o := range []*observer{first, second} {
		o.processed(redischannels.ProcessAcked)
		require.Equal(t, []error{nil}, o.published)
	}
}

// A hub has one Instrumentation for all its channels.
func TestInstrumentation_IsOfTheHub(t *testing.T) {
	t.Parallel()
	hub := newHubOf(t)
	var stream redischannels.StreamChannelConfig
	stream.Publisher.Instrumentation, stream.Subscriber.Instrumentation = faulty{}, faulty{}
	var live redischannels.PubSubChannelConfig
	live.Publisher.Instrumentation, live.Subscriber.Instrumentation = faulty{}, faulty{}
	_, err := redischannels.NewStreamChannel[int](hub.Hub, "x", stream)
	_, other := redischannels.NewPubSubChannel[int](hub.Hub, "x", live)
	err = errors.Join(err, other)
	for _, field := range []string{"StreamChannelConfig.Publisher", "StreamChannelConfig.Subscriber", "PubSubChannelConfig.Publisher", "PubSubChannelConfig.Subscriber"} {
		require.ErrorContains(t, err, field+".Instrumentation")
	}
}
