package redischannels

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/flaminco/redischannels/internal/delayed"
	"github.com/flaminco/redischannels/internal/lifecycle"
	"github.com/flaminco/redischannels/internal/source"
	"github.com/flaminco/redischannels/internal/stream"
)

// Channel is a stream of values of type T, written and read by this process or by others: a
// facade over a Watermill publisher and subscriber. It is neither a Go channel nor a channel of
// Redis Pub/Sub. It is safe for concurrent use.
type Channel[T any] struct {
	writer *Writer[T]
	reader *Reader[T]
	hub    *Hub // nil for NewChannel
}

// transport connects a channel to a publisher and a subscriber.
type transport struct {
	topic     string
	limit     int  // greatest number of unacknowledged deliveries, 0 if it is not known
	fixed     bool // it was configured
	subscribe subscribeFunc
	decoding  decoding
	publish   func(ctx context.Context, msgs []*message.Message) ([]string, error)
	// delay publishes a message when it is due; nil if the transport has no delays.
	delay func(ctx context.Context, msg *message.Message, due delayed.Due) ([]PublishResult, error)
	// room reports whether WaitToWrite may return; nil: always.
	room func(ctx context.Context) (bool, error)
	// history and last are nil if the transport stores no messages; follow then accepts only
	// Latest.
	history func(ctx context.Context, from Position) iter.Seq2[*source.Attempt, error]
	last    func(ctx context.Context) (string, error)
	follow  func(from Position, live func(start stream.ID)) (followed, error)
	drain   time.Duration
	writing time.Duration // for how long release may wait for writes
	logger  watermill.LoggerAdapter
	// groupStats is nil if the transport has no groups.
	groupStats func(ctx context.Context, topic string) (GroupStats, error)
	// deadLetters is nil if the transport has none.
	deadLetters *deadLetterSource
	// release ends the use of the publisher and the subscriber that channels of a hub share; nil
	// without a hub.
	release func() error
}

var errNoHub = invalidArgument("hub", errNil)

// NewStreamChannel returns a channel on the Redis stream key. It sends no commands to Redis: the
// first write and the first read do, each for itself, so a channel used only for writing never
// joins a group. The errors wrap [ErrInvalidConfig], [ErrInvalidArgument] or [ErrClosed].
func NewStreamChannel[T any](hub *Hub, key string, config StreamChannelConfig) (*Channel[T], error) {
	if hub == nil {
		return nil, errNoHub
	}
	return newStreamChannel(hub, key, config, newCoder[T])
}

// newStreamChannel returns a channel with the coder that newCoder returns for its codec.
func newStreamChannel[T any](hub *Hub, key string, config StreamChannelConfig, newCoder func(Codec) (coder[T], error)) (*Channel[T], error) {
	v := validation{prefix: "StreamChannelConfig"}
	fixed := orDefault(config.Subscriber.MaxInFlight, hub.config.Stream.Subscriber.MaxInFlight) != 0
	config = hub.streamConfig(&v, config)
	code, err := newCoder(config.Codec)
	v.check(err, "Codec")
	if err := errors.Join(validateTopic(key), v.err()); err != nil {
		return nil, err
	}
	return joinHub(hub, code, func() (transport, error) {
		t, err := hub.streamTransport(key, config)
		t.fixed = fixed
		return t, err
	})
}

// NewPubSubChannel returns a channel on the Redis Pub/Sub channel name. A value reaches the
// readers that are subscribed when it is published. It is lost without a reader, while the
// connection is lost, and if a reader falls behind by more than its Buffer; the last two losses
// are reported by events. NewPubSubChannel sends no commands to Redis. The first read returns
// when Redis has confirmed the subscription, or fails. IDs are the UUIDs of messages. History and
// LastID return [ErrNotSupported], and so does Follow from any position but Latest. The errors
// are those of NewStreamChannel.
func NewPubSubChannel[T any](hub *Hub, name string, config PubSubChannelConfig) (*Channel[T], error) {
	if hub == nil {
		return nil, errNoHub
	}
	return newPubSubChannel(hub, name, config, newCoder[T])
}

// newPubSubChannel returns a channel with the coder that newCoder returns for its codec.
func newPubSubChannel[T any](hub *Hub, name string, config PubSubChannelConfig, newCoder func(Codec) (coder[T], error)) (*Channel[T], error) {
	v := validation{prefix: "PubSubChannelConfig"}
	fixed := orDefault(config.Subscriber.MaxInFlight, hub.config.PubSub.Subscriber.MaxInFlight) != 0
	config = hub.pubSubConfig(&v, config)
	code, err := newCoder(config.Codec)
	v.check(err, "Codec")
	if err := errors.Join(validateTopic(name), v.err()); err != nil {
		return nil, err
	}
	return joinHub(hub, code, func() (transport, error) {
		t, err := hub.pubSubTransport(name, config)
		t.fixed = fixed
		return t, err
	})
}

// NewChannel returns a channel over any Watermill publisher and subscriber, such as gochannel in
// unit tests. Either may be nil for a channel that only reads or only writes; the other direction
// returns [ErrNotSupported]. So do the operations that only Redis Streams have: History, LastID,
// Follow from any position but Latest, Reject, NackAfter, and the bounds of WaitToWrite. IDs are
// the UUIDs of the messages. Deliveries from a [Subscriber] have entry IDs instead, and can be
// rejected and delayed.
//
// Most transports redeliver a nacked message at once and without a limit. The Nack of a message
// whose handling failed therefore reaches the transport after 10 ms, doubled each time up to a
// second; until then the message counts as being handled. A value that cannot be decoded is
// acknowledged and logged.
//
// The caller owns publisher and subscriber: Close ends only the subscription.
func NewChannel[T any](publisher message.Publisher, subscriber message.Subscriber, topic string, config ChannelConfig[T]) (*Channel[T], error) {
	return newGenericChannel(publisher, subscriber, topic, config, newCoder[T])
}

// newGenericChannel returns a channel with the coder that newCoder returns for its codec.
func newGenericChannel[T any](publisher message.Publisher, subscriber message.Subscriber, topic string, config ChannelConfig[T], newCoder func(Codec) (coder[T], error)) (*Channel[T], error) {
	v := validation{prefix: "ChannelConfig"}
	code, err := newCoder(config.Codec)
	v.check(err, "Codec")
	v.duration("DrainTimeout", config.DrainTimeout, time.Millisecond)
	if err := errors.Join(validateTopic(topic), v.err()); err != nil {
		return nil, err
	}
	config.Logger = loggerOrDefault(config.Logger)
	c := newChannel(genericTransport(publisher, subscriber, topic, orDefault(config.DrainTimeout, DefaultDrainTimeout), config.Logger), code)
	c.writer.metadataOf = config.Metadata
	return c, nil
}

// joinHub returns a channel that Hub.Close closes.
func joinHub[T any](hub *Hub, code coder[T], build func() (transport, error)) (*Channel[T], error) {
	if err := hub.life.Enter(); err != nil {
		return nil, err
	}
	defer hub.life.Leave()
	t, err := build()
	if err != nil {
		return nil, err
	}
	c := newChannel(t, code)
	c.hub = hub
	hub.add(c)
	return c, nil
}

func newChannel[T any](t transport, code coder[T]) *Channel[T] {
	closed := fmt.Errorf("redischannels: write to %q: channel: %w", t.topic, ErrClosed)
	return &Channel[T]{
		writer: &Writer[T]{transport: &t, life: lifecycle.New(closed), code: code},
		reader: newReader(t, code),
	}
}

// Writer returns the writing side.
func (c *Channel[T]) Writer() *Writer[T] { return c.writer }

// Reader returns the reading side. There is one per channel; several goroutines may
// read from it and share the values.
func (c *Channel[T]) Reader() *Reader[T] { return c.reader }

// Close closes the writer, so that later writes return [ErrClosed], and the reader, as
// [Reader.Close] does. Other channels are not affected, even on the same stream. If no other
// channel of the hub has equal settings, the publisher and the subscriber are closed too, which
// waits for running writes as [Publisher.Close] does. Close may be called several times, and from
// anywhere but OnEvent. Its error is that of closing the connections, or [ErrCloseTimeout] if it has
// not returned 20 s after DrainTimeout and what running writes may take.
func (c *Channel[T]) Close() error {
	t := c.writer.transport
	return c.writer.life.CloseWithin(t.drain+t.writing, func() error {
		err := c.reader.Close()
		if c.hub == nil {
			return err
		}
		defer c.hub.remove(c)
		return errors.Join(err, t.release())
	})
}
