package redischannels

import (
	"context"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/flaminco/redischannels/internal/lifecycle"
	"github.com/flaminco/redischannels/internal/pubsub"
)

// A call of up to this many messages and bytes is one pipeline.
const (
	pubSubPipeline      = 500
	pubSubPipelineBytes = 4 << 20
)

// PubSubPublisher publishes messages to Redis Pub/Sub channels. It is safe for concurrent use.
// Redis stores nothing: a message reaches the subscriptions that exist when it is published. The
// loss of a message without a subscription is not reported.
type PubSubPublisher struct {
	config PubSubPublisherConfig
	logger watermill.LoggerAdapter
	life   *lifecycle.State // calls, and goroutines that wait for Redis

	observer *instrument // nil for none
}

var _ message.Publisher = (*PubSubPublisher)(nil)

// NewPubSubPublisher returns a PubSubPublisher. It sends no commands to Redis. With a nil logger,
// errors are written to slog.Default(); watermill.NopLogger writes nothing. The error joins one
// for each invalid field, which wraps [ErrInvalidConfig].
func NewPubSubPublisher(config PubSubPublisherConfig, logger watermill.LoggerAdapter) (*PubSubPublisher, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	logger = loggerOrDefault(logger)
	return &PubSubPublisher{
		config: config.withDefaults(), logger: logger, life: lifecycle.New(ErrClosed),
		observer: newPublishInstrument(config.Instrumentation, logger),
	}, nil
}

// Publish publishes the messages to the channel of the topic and returns when Redis has accepted
// all of them, which does not mean that a subscriber has received them. The context of each
// message and PubSubPublisherConfig.Timeout bound the wait: messages that are not sent by then
// are withdrawn.
//
// All messages are marshaled before the first is sent: if one cannot be marshaled, or exceeds
// MaxPayload, none is sent. They are sent in their order, in one pipeline; messages of other
// publishers may come between them. More than 500 messages, or 4 MiB, are several pipelines;
// after a failed one the rest is not sent. A message that may have been published is not sent
// again.
//
// The error is a [*PublishError] with the outcome of each message, in which OutcomeAppended means
// that Redis has accepted it. A payload must not be changed while its outcome is unknown.
func (p *PubSubPublisher) Publish(topic string, msgs ...*message.Message) error {
	if !p.observer.observes(msgs) {
		_, err := p.publishJoined(topic, msgs)
		return err
	}
	return p.observer.publish(msgs[0].Context(), Publication{Topic: topic, PubSub: true, Messages: msgs}, func(msgs []*message.Message) error {
		_, err := p.publishJoined(topic, msgs)
		return err
	})
}

// Send is Publish with a context, which bounds the wait instead of the messages' contexts, in
// addition to PubSubPublisherConfig.Timeout. It returns for each message the number of
// subscriptions to which Redis has sent it. In a cluster it counts only those of the node that
// executed the command. A connection with a channel and two matching patterns counts three times.
// With an error the numbers of messages that were not certainly accepted are -1.
func (p *PubSubPublisher) Send(ctx context.Context, topic string, msgs ...*message.Message) (receivers []int, err error) {
	bound := func() (context.Context, func()) { return ctx, func() {} }
	if !p.observer.observes(msgs) {
		return p.publish(topic, msgs, bound)
	}
	err = p.observer.publish(ctx, Publication{Topic: topic, PubSub: true, Messages: msgs}, func(msgs []*message.Message) (err error) {
		receivers, err = p.publish(topic, msgs, bound)
		return err
	})
	return receivers, err
}

// publishJoined publishes with the contexts of the messages.
func (p *PubSubPublisher) publishJoined(topic string, msgs []*message.Message) ([]int, error) {
	return p.publish(topic, msgs, func() (context.Context, func()) { return joinContexts(msgs) })
}

// Close waits for running calls, for at most PubSubPublisherConfig.Timeout and the timeouts of
// the Redis client, and returns when no goroutine of the PubSubPublisher is left. Later calls
// return [ErrClosed]. The Redis client stays open. Close may be called several times and at any
// time. It returns [ErrCloseTimeout] 20 s after Timeout.
func (p *PubSubPublisher) Close() error {
	return p.life.CloseWithin(p.closing(), nil)
}

// closing is how long Close may take by the timeouts of the publisher.
func (p *PubSubPublisher) closing() time.Duration { return max(0, p.config.Timeout) }

// publish publishes with the context that bound returns. It calls bound after it has checked that
// no message is nil.
func (p *PubSubPublisher) publish(topic string, msgs []*message.Message, bound func() (context.Context, func())) ([]int, error) {
	if err := validateTopic(topic); err != nil {
		return nil, err
	}
	if err := p.life.Enter(); err != nil {
		return nil, fmt.Errorf("redischannels: publish to %q: %w", topic, err)
	}
	defer p.life.Leave()
	if len(msgs) == 0 {
		return nil, nil
	}
	payloads, err := p.marshal(topic, msgs)
	if err != nil {
		return nil, err
	}
	ctx, stop := bound()
	defer stop()
	if p.config.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, p.config.Timeout)
		defer cancel()
	}

	results := make([]pubsub.Result, 0, len(msgs))
	failed := false
	for len(payloads) > 0 {
		n := pubSubChunk(payloads)
		if failed {
			for range n {
				results = append(results, pubsub.Result{Err: errEarlierFailed})
			}
		} else {
			part := p.send(ctx, topic, payloads[:n])
			for i := range part {
				failed = failed || part[i].Outcome != pubsub.Published
			}
			results = append(results, part...)
		}
		payloads = payloads[n:]
	}
	receivers := make([]int, len(msgs))
	for i, r := range results {
		receivers[i] = -1
		if r.Outcome == pubsub.Published {
			receivers[i] = int(r.Receivers)
		}
	}
	if !failed {
		return receivers, nil
	}
	report := &PublishError{Topic: topic, Results: make([]PublishResult, len(msgs))}
	for i, r := range results {
		report.Results[i] = pubSubResult(i, msgs[i].UUID, r)
	}
	return receivers, report
}

// send sends one pipeline and waits for it as long as ctx allows.
func (p *PubSubPublisher) send(ctx context.Context, topic string, payloads [][]byte) []pubsub.Result {
	if ctx.Err() != nil {
		return sameResult(len(payloads), pubsub.NotPublished, context.Cause(ctx))
	}
	load := pubsub.NewLoad(context.WithoutCancel(ctx), p.config.ChannelPrefix+topic, p.config.Sharded, payloads)
	done := make(chan []pubsub.Result, 1)
	p.life.Go(func() { done <- load.Send(p.config.Client) })
	select {
	case results := <-done:
		return results
	case <-ctx.Done():
	}
	if load.Withdraw() {
		return sameResult(len(payloads), pubsub.NotPublished, context.Cause(ctx))
	}
	select {
	case results := <-done: // both at once
		return results
	default:
		return sameResult(len(payloads), pubsub.Unknown, context.Cause(ctx))
	}
}

// marshal encodes all messages, or returns an error that names the message that cannot be
// encoded.
func (p *PubSubPublisher) marshal(topic string, msgs []*message.Message) ([][]byte, error) {
	payloads := make([][]byte, len(msgs))
	for i, msg := range msgs {
		data, err := p.marshalOne(topic, msg)
		if err != nil {
			return nil, refused(topic, msgs, i, err)
		}
		payloads[i] = data
	}
	return payloads, nil
}

// marshalOne calls the marshaler. A panic in it is returned as an error of the message: in a
// handler's goroutine it would end the process.
func (p *PubSubPublisher) marshalOne(topic string, msg *message.Message) (data []byte, err error) {
	if msg == nil {
		return nil, fmt.Errorf("%w: message is nil", ErrInvalidArgument)
	}
	defer func() {
		if v := recover(); v != nil {
			data, err = nil, fmt.Errorf("panic in the marshaler: %v", v)
		}
	}()
	if data, err = p.config.Marshaler.Marshal(topic, msg); err != nil {
		return nil, fmt.Errorf("marshal: %w", err)
	}
	if p.config.MaxPayload > 0 && len(data) > p.config.MaxPayload {
		return nil, fmt.Errorf("%w: %d bytes, MaxPayload is %d", ErrTooLarge, len(data), p.config.MaxPayload)
	}
	return data, nil
}

// pubSubChunk returns the number of payloads in the next pipeline.
func pubSubChunk(payloads [][]byte) int {
	bytes := 0
	for n, data := range payloads {
		bytes += len(data) + appendOverhead
		if n == pubSubPipeline || n > 0 && bytes > pubSubPipelineBytes {
			return n
		}
	}
	return len(payloads)
}

func sameResult(n int, outcome pubsub.Outcome, err error) []pubsub.Result {
	results := make([]pubsub.Result, n)
	for i := range results {
		results[i] = pubsub.Result{Outcome: outcome, Err: err}
	}
	return results
}

// pubSubResult returns the exported result of a publication.
func pubSubResult(index int, uuid string, r pubsub.Result) PublishResult {
	result := PublishResult{Index: index, UUID: uuid}
	switch r.Outcome {
	case pubsub.Published:
		result.Outcome = OutcomeAppended
	case pubsub.NotPublished:
		result.Outcome = OutcomeNotAppended
		result.Err = redisError(r.Err)
	default:
		result.Outcome = OutcomeUnknown
		result.Err = fmt.Errorf("%w: %w", ErrOutcomeUnknown, redisError(r.Err))
	}
	return result
}
