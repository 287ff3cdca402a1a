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

// Channel is a stream of values of T that some write and others read, in this process
// or elsewhere: a facade over a Watermill publisher and subscriber. (It is no Go
// channel, and no channel of Redis Pub/Sub.) It is safe for concurrent use.
type Channel[T any] struct {
	writer *Writer[T]
	reader *Reader[T]
	hub    *Hub // nil for NewChannel
}

// transport is what a channel stands on.
type transport struct {
	topic     string
	limit     int  // greatest number of unacknowledged deliveries, 0 if it is not known
	fixed     bool // it was configured
	subscribe subscribeFunc
	decoding  decoding
	publish   func(ctx context.Context, msgs []*message.Message) ([]string, error)
	// delay publishes a message when it is due; nil where the transport cannot.
	delay func(ctx context.Context, msg *message.Message, due delayed.Due) ([]PublishResult, error)
	// room reports whether WaitToWrite may return; nil: always.
	room func(ctx context.Context) (bool, error)
	// history and last are nil where the transport keeps nothing; follow knows only
	// Latest there.
	history func(ctx context.Context, from Position) iter.Seq2[*source.Attempt, error]
	last    func(ctx context.Context) (string, error)
	follow  func(from Position, live func(start stream.ID)) (followed, error)
	drain   time.Duration
	logger  watermill.LoggerAdapter
	// groupStats is nil where the transport has no groups.
	groupStats func(ctx context.Context, topic string) (GroupStats, error)
	// deadLetters is nil where the transport has none.
	deadLetters *deadLetterSource
	// release ends the use of what channels of a hub share; nil without a hub.
	release func() error
}

var errNoHub = invalidArgument("hub", errNil)

// NewStreamChannel makes a channel on the Redis stream key. It does not talk to Redis:
// the first write and the first read do, each on its own, so a channel used only for
// writing never joins a group. The errors wrap [ErrInvalidConfig], [ErrInvalidArgument]
// or [ErrClosed].
func NewStreamChannel[T any](hub *Hub, key string, config StreamChannelConfig) (*Channel[T], error) {
	if hub == nil {
		return nil, errNoHub
	}
	return newStreamChannel(hub, key, config, newCoder[T])
}

// newStreamChannel makes a channel with the coder that newCoder makes of its codec.
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

// NewPubSubChannel makes a channel on the Redis Pub/Sub channel name. A value reaches the
// readers of that moment. It is lost while there is none, while the connection is lost, and
// when a reader falls behind by more than its Buffer; the last two are reported by events. It
// does not talk to Redis before the first use; the first read returns when Redis has confirmed
// the subscription, or fails. IDs are the UUIDs of messages; History and LastID return
// [ErrNotSupported], and so does Follow from elsewhere than Latest. The errors are those of
// NewStreamChannel.
func NewPubSubChannel[T any](hub *Hub, name string, config PubSubChannelConfig) (*Channel[T], error) {
	if hub == nil {
		return nil, errNoHub
	}
	return newPubSubChannel(hub, name, config, newCoder[T])
}

// newPubSubChannel makes a channel with the coder that newCoder makes of its codec.
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

// NewChannel makes a channel over any Watermill publisher and subscriber, such as
// gochannel in unit tests. Either may be nil for a channel that only reads or only
// writes; the other direction returns [ErrNotSupported]. So does what only Redis Streams
// can do: History, LastID, Follow from elsewhere than Latest, Reject, NackAfter, the bounds
// of WaitToWrite. IDs are the UUIDs of the messages, but those of deliveries from a
// [Subscriber] are entry IDs, and these can be rejected and delayed too.
//
// Most transports redeliver a nacked message at once and without end. So the Nack of a
// message whose handling failed reaches the transport after 10 ms, and after twice as long
// each time, up to a second; until then the message counts as being handled. A value that
// cannot be decoded is acknowledged and logged.
//
// Publisher and subscriber stay the caller's: Close ends only the subscription.
func NewChannel[T any](publisher message.Publisher, subscriber message.Subscriber, topic string, config ChannelConfig[T]) (*Channel[T], error) {
	return newGenericChannel(publisher, subscriber, topic, config, newCoder[T])
}

// newGenericChannel makes a channel with the coder that newCoder makes of its codec.
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

// joinHub makes a channel that the hub's Close closes.
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
// [Reader.Close] does. Other channels are not concerned, also on the same stream. If no
// other channel of the hub has equal settings, its publisher and subscriber are closed as
// well, which waits for the writes under way as [Publisher.Close] does. It may be called
// often and from anywhere but OnEvent; the error is that of closing the connections.
func (c *Channel[T]) Close() error {
	return c.writer.life.Close(func() error {
		_ = c.reader.Close() // always nil
		if c.hub == nil {
			return nil
		}
		defer c.hub.remove(c)
		return c.writer.transport.release()
	})
}
