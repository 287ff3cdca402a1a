package tests

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// go-redis sends a PUBLISH again whose reply was lost: subscribers get it twice.
func TestPubSub_LostPublishReplyIsNoDuplicate(t *testing.T) {
	t.Parallel()
	proxy, client, direct := pubProxy(t)
	for _, sharded := range []bool{false, true} {
		command := map[bool]string{false: "publish", true: "spublish"}[sharded]
		pub := newPubSubPub(t, client, func(c *redischannels.PubSubPublisherConfig) { c.Sharded = sharded })
		sub := newPubSub(t, direct, func(c *redischannels.PubSubSubscriberConfig) { c.Sharded = sharded })
		topic := redistest.Key(t)
		messages := sub.subscribe(t, topic)
		say(t, pub, topic, "warm")
		receiveAcked(t, messages, 1)

		proxy.DropReply(1, redistest.Command(command))
		receivers, err := pub.Send(t.Context(), topic, pubMessages("m", 1)...)
		requireOutcomes(t, err, redischannels.OutcomeUnknown, 1)
		require.ErrorIs(t, err, redischannels.ErrOutcomeUnknown)
		require.Equal(t, []int{-1}, receivers)
		receiveAcked(t, messages, 1)
		noMessage(t, messages)

		// The third of five: two are accepted, the rest was sent as well.
		third := pubMessages("m", 5)
		third[2].Payload = []byte("third-" + command)
		proxy.DropReply(1, redistest.Contains("third-"+command))
		receivers, err = pub.Send(t.Context(), topic, third...)
		var pe *redischannels.PublishError
		require.ErrorAs(t, err, &pe)
		require.Equal(t, redischannels.OutcomeAppended, pe.Results[0].Outcome)
		require.Equal(t, redischannels.OutcomeUnknown, pe.Results[2].Outcome)
		require.Equal(t, redischannels.OutcomeUnknown, pe.Results[4].Outcome)
		require.Equal(t, []int{1, 1, -1, -1, -1}, receivers)
		receiveAcked(t, messages, 3)
		noMessage(t, messages)

		// A request that the server never sees was sent all the same.
		proxy.DropRequest(1, redistest.Command(command))
		requireOutcomes(t, pub.Publish(topic, pubMessages("m", 1)...), redischannels.OutcomeUnknown, 1)
		noMessage(t, messages)
	}
}

// One message that cannot be marshaled prevents all of its call.
func TestPubSub_InvalidMessagePublishesNothing(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	topic := redistest.Key(t)
	messages := newPubSub(t, client).subscribe(t, topic)
	good := func() *message.Message { return message.NewMessage("good", []byte("good")) }
	withMetadata := good()
	withMetadata.Metadata.Set("k", "v")
	for name, c := range map[string]struct {
		bad    *message.Message
		change func(*redischannels.PubSubPublisherConfig)
		want   string
		is     error
	}{
		"nil": {nil, nil, "message is nil", redischannels.ErrInvalidArgument},
		"too large": {message.NewMessage("u", make([]byte, 100)),
			func(c *redischannels.PubSubPublisherConfig) { c.MaxPayload = 100 }, "MaxPayload is 100", redischannels.ErrTooLarge},
		"metadata without a place": {withMetadata,
			func(c *redischannels.PubSubPublisherConfig) { c.Marshaler = redischannels.RawPayload{} }, "DropMetadata", nil},
		"panic": {message.NewMessage("panic", nil),
			func(c *redischannels.PubSubPublisherConfig) { c.Marshaler = brokenPubSubMarshaler{} }, "panic in the marshaler", nil},
	} {
		t.Run(name, func(t *testing.T) {
			if c.change == nil {
				c.change = func(*redischannels.PubSubPublisherConfig) {}
			}
			pub := newPubSubPub(t, client, c.change)
			err := pub.Publish(topic, good(), c.bad, good())
			requireOutcomes(t, err, redischannels.OutcomeNotAppended, 3)
			require.ErrorContains(t, err, "message 1")
			require.ErrorContains(t, err, c.want)
			if c.is != nil {
				require.ErrorIs(t, err, c.is)
			}
		})
	}
	noMessage(t, messages)
	require.ErrorIs(t, newPubSubPub(t, client).Publish("", good()), redischannels.ErrInvalidArgument)
	require.NoError(t, newPubSubPub(t, client).Publish(topic))
}

type brokenPubSubMarshaler struct{}

func (brokenPubSubMarshaler) Marshal(_ string, msg *message.Message) ([]byte, error) {
	if msg.UUID == "panic" {
		panic("no")
	}
	return nil, nil
}

// A call outlives its context and its timeout.
func TestPubSub_TimeoutAndCancelEndPublish(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		end  func(pub *redischannels.PubSubPublisher, topic string) error
		want error
	}{
		"timeout": {func(pub *redischannels.PubSubPublisher, topic string) error {
			return pub.Publish(topic, pubMessages("m", 3)...)
		}, context.DeadlineExceeded},
		"context of a message": {func(pub *redischannels.PubSubPublisher, topic string) error {
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(50*time.Millisecond, cancel)
			msgs := pubMessages("m", 3)
			msgs[1].SetContext(ctx)
			return pub.Publish(topic, msgs...)
		}, context.Canceled},
		"context of Send": {func(pub *redischannels.PubSubPublisher, topic string) error {
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			_, err := pub.Send(ctx, topic, pubMessages("m", 3)...)
			return err
		}, context.DeadlineExceeded},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			proxy, client, _ := pubProxy(t, func(o *redis.Options) { o.ReadTimeout = 2 * time.Second })
			pub := newPubSubPub(t, client, func(c *redischannels.PubSubPublisherConfig) { c.Timeout = 300 * time.Millisecond })
			topic := redistest.Key(t)
			redistest.Eventually(t, soon, func() bool { return pub.Publish(topic, pubMessages("warm", 3)...) == nil }, "a connection")
			proxy.Blackhole(true)
			start := time.Now()
			err := c.end(pub, topic)
			require.Less(t, time.Since(start), 300*time.Millisecond+prompt)
			requireOutcomes(t, err, redischannels.OutcomeUnknown, 3)
			require.ErrorIs(t, err, c.want)
		})
	}

	t.Run("before it begins", func(t *testing.T) {
		t.Parallel()
		pub := newPubSubPub(t, redistest.Shared(t).Client(t))
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := pub.Send(ctx, redistest.Key(t), pubMessages("m", 2)...)
		requireOutcomes(t, err, redischannels.OutcomeNotAppended, 2)
		require.ErrorIs(t, err, context.Canceled)
	})

	// Messages that wait for a connection of the pool are withdrawn: they must not arrive later.
	t.Run("withdrawn", func(t *testing.T) {
		t.Parallel()
		server := redistest.Start(t)
		client := server.Client(t, func(o *redis.Options) { o.PoolSize, o.PipelinePoolSize, o.PoolTimeout = 1, -1, soon })
		topic := redistest.Key(t)
		messages := newPubSub(t, server.Client(t)).subscribe(t, topic)
		conn := client.Conn()
		require.NoError(t, conn.Ping(t.Context()).Err())
		pub := newPubSubPub(t, client, func(c *redischannels.PubSubPublisherConfig) { c.Timeout = 50 * time.Millisecond })
		for _, n := range []int{1, 3} {
			requireOutcomes(t, pub.Publish(topic, pubMessages("m", n)...), redischannels.OutcomeNotAppended, n)
		}
		require.NoError(t, conn.Close())
		require.NoError(t, pub.Close(), "waits for what was withdrawn")
		noMessage(t, messages)
		require.NoError(t, client.Ping(t.Context()).Err(), "the client is the caller's")
	})
}

// Failures of Redis are reported by name, and several pipelines stop at the first that fails.
func TestPubSub_PublishRefused(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, redistest.WithACL("none on >secret ~* +@all resetchannels &allowed"))
	client := server.Client(t, redistest.As("none", "secret"))
	pub := newPubSubPub(t, client)
	for _, n := range []int{1, 3} {
		err := pub.Publish("secret", pubMessages("m", n)...)
		requireOutcomes(t, err, redischannels.OutcomeNotAppended, n)
		require.ErrorIs(t, err, redischannels.ErrPermission)
	}
	require.NoError(t, pub.Publish("allowed", pubMessages("m", 1)...))

	err := pub.Publish("secret", pubMessages("m", 501)...)
	requireOutcomes(t, err, redischannels.OutcomeNotAppended, 501)
	require.Equal(t, "not sent, because an earlier message failed", pubError(t, err).Results[500].Err.Error())

	nobody := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", MaxRetries: -1, DialerRetries: 1})
	t.Cleanup(func() { _ = nobody.Close() })
	err = newPubSubPub(t, nobody).Publish("t", pubMessages("m", 2)...)
	requireOutcomes(t, err, redischannels.OutcomeNotAppended, 2)
	require.ErrorContains(t, err, "connection refused")
}

// One call is as few round trips as it can be, in order, and says how many have received.
func TestPubSub_PublishBatch(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client(t)
	topic := redistest.Key(t)
	sub := newPubSub(t, client, patterns, buffer(5000, redischannels.DropOldest))
	messages := sub.subscribe(t, topic)
	sub.subscribe(t, topic+"*")
	newPubSub(t, client).subscribe(t, topic)
	hook := new(pipelineCounter)
	client.AddHook(hook)
	pub := newPubSubPub(t, client)
	msgs := make([]*message.Message, 1200)
	for i := range msgs {
		msgs[i] = message.NewMessage("", []byte(fmt.Sprint(i+1)))
	}
	receivers, err := pub.Send(t.Context(), topic, msgs...)
	require.NoError(t, err)
	require.Len(t, receivers, 1200)
	for _, n := range receivers {
		require.Equal(t, 3, n)
	}
	require.Equal(t, []int{500, 500, 200}, hook.sizes)
	require.Equal(t, counted(1, 1200), receiveAcked(t, messages, 1200))
	say(t, pub, topic, "secret", "secret")
	printed := hook.printed[len(hook.printed)-1]
	require.Contains(t, printed, " bytes)")
	require.NotContains(t, printed, "secret", "no payload in what hooks print")

	large := message.NewMessage("", []byte(strings.Repeat("x", 3<<20)))
	hook.sizes = nil
	require.NoError(t, pub.Publish(topic, large, large, large))
	require.Equal(t, []int{1, 1}, hook.sizes[1:], "at most 4 MiB at once")
}

// Calls after Close return ErrClosed; calls under way come to their end.
func TestPubSub_PublisherClose(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	goroutines := redistest.Goroutines(t)
	proxy := redistest.NewProxy(t, server.Addr())
	client := server.Client(t, redistest.Via(proxy))
	pub := newPubSubPub(t, client)
	topic := redistest.Key(t)
	say(t, pub, topic, "warm")
	proxy.Delay(50 * time.Millisecond)
	published := make(chan error, 1)
	sent := proxy.BeforeRequest(1, redistest.Command("publish"), func() {})
	go func() { published <- pub.Publish(topic, pubMessages("m", 1)...) }()
	sent.Wait(t, soon)
	require.NoError(t, pub.Close())
	require.NoError(t, <-published)
	require.ErrorIs(t, pub.Publish(topic, pubMessages("m", 1)...), redischannels.ErrClosed)
	_, err := pub.Send(t.Context(), topic, pubMessages("m", 1)...)
	require.ErrorIs(t, err, redischannels.ErrClosed)
	require.NoError(t, pub.Close())
	goroutines.Wait(time.Second)
	require.NoError(t, client.Ping(t.Context()).Err(), "the client is the caller's")
}

// A panic in a hook of the client is an error of the call, not the end of the process.
func TestPubSub_PanicInAHookIsAnError(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	client.AddHook(angryHook{})
	err := newPubSubPub(t, client).Publish(redistest.Key(t), pubMessages("m", 1)...)
	requireOutcomes(t, err, redischannels.OutcomeNotAppended, 1)
	require.ErrorContains(t, err, "panic in the redis client or a hook of it")
}

type angryHook struct{}

func (angryHook) DialHook(next redis.DialHook) redis.DialHook { return next }
func (angryHook) ProcessHook(redis.ProcessHook) redis.ProcessHook {
	return func(context.Context, redis.Cmder) error { panic(errors.New("angry")) }
}
func (angryHook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// pipelineCounter notes the sizes of pipelines and what their commands print.
type pipelineCounter struct {
	sizes   []int
	printed []string
}

func (*pipelineCounter) DialHook(next redis.DialHook) redis.DialHook { return next }
func (c *pipelineCounter) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if cmd.Name() == "publish" {
			c.sizes = append(c.sizes, 1)
		}
		return next(ctx, cmd)
	}
}
func (c *pipelineCounter) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if cmds[0].Name() == "publish" {
			c.sizes = append(c.sizes, len(cmds))
			c.printed = append(c.printed, cmds[0].String())
		}
		return next(ctx, cmds)
	}
}
