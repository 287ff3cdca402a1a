package redischannels

import (
	"context"
	"errors"
	"iter"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
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
	feed    feedConfig
	publish func(ctx context.Context, msgs []*message.Message) ([]string, error)
	// room tells whether WaitToWrite may return; nil: always.
	room func(ctx context.Context) (bool, error)
	// history and last are nil where the transport keeps nothing; follow knows only
	// Latest there.
	history func(ctx context.Context, from Position) iter.Seq2[*message.Message, error]
	last    func(ctx context.Context) (string, error)
	follow  func(from Position) (*feed, error)
	drain   time.Duration
	logger  watermill.LoggerAdapter
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
	config = hub.streamConfig(config)
	code, err := newCoder[T](config.Codec)
	return newStreamChannel(hub, key, config, code, err)
}

// newStreamChannel makes a channel of a coder, or reports its error with the others.
func newStreamChannel[T any](hub *Hub, key string, config StreamChannelConfig, code coder[T], codeErr error) (*Channel[T], error) {
	v := validation{prefix: "StreamChannelConfig"}
	v.check(codeErr, "Codec")
	config.validate(&v, true)
	if err := errors.Join(validateTopic(key), v.err()); err != nil {
		return nil, err
	}
	t, err := hub.streamTransport(key, config)
	if err != nil {
		return nil, err
	}
	return joinHub(hub, newChannel(t, code))
}

// NewPubSubChannel makes a channel on the Redis Pub/Sub channel name: whoever reads at
// that moment sees a value, and nobody is told who did not. A value is lost while
// nobody reads, while the connection is, and when a reader falls behind by more than
// its Buffer, which events tell of. It does not talk to Redis before the first use;
// the first read returns when Redis has confirmed the subscription or fails. IDs are
// those of the messages; History and LastID answer [ErrNotSupported], and so does Follow
// from elsewhere than Latest.
func NewPubSubChannel[T any](hub *Hub, name string, config PubSubChannelConfig) (*Channel[T], error) {
	if hub == nil {
		return nil, errNoHub
	}
	config = hub.pubSubConfig(config)
	code, err := newCoder[T](config.Codec)
	return newPubSubChannel(hub, name, config, code, err)
}

// newPubSubChannel makes a channel of a coder, or reports its error with the others.
func newPubSubChannel[T any](hub *Hub, name string, config PubSubChannelConfig, code coder[T], codeErr error) (*Channel[T], error) {
	v := validation{prefix: "PubSubChannelConfig"}
	v.check(codeErr, "Codec")
	config.validate(&v)
	if err := errors.Join(validateTopic(name), v.err()); err != nil {
		return nil, err
	}
	t, err := hub.pubSubTransport(name, config)
	if err != nil {
		return nil, err
	}
	return joinHub(hub, newChannel(t, code))
}

// NewChannel makes a channel over any Watermill publisher and subscriber, such as
// gochannel in unit tests. Either may be nil for a channel that only reads or only
// writes; the other direction answers [ErrNotSupported]. What only Redis Streams can
// do (History, LastID, Follow from elsewhere than Latest, Reject, NackAfter, the bounds of
// WaitToWrite) does so as well.
// IDs are the UUIDs of the messages, but those of deliveries from a [Subscriber] the entry
// IDs.
//
// Publisher and subscriber stay the caller's: Close ends only the subscription.
func NewChannel[T any](publisher message.Publisher, subscriber message.Subscriber, topic string, config ChannelConfig[T]) (*Channel[T], error) {
	code, err := newCoder[T](config.Codec)
	return newGenericChannel(publisher, subscriber, topic, config, code, err)
}

// newGenericChannel makes a channel of a coder, or reports its error with the others.
func newGenericChannel[T any](publisher message.Publisher, subscriber message.Subscriber, topic string, config ChannelConfig[T], code coder[T], codeErr error) (*Channel[T], error) {
	v := validation{prefix: "ChannelConfig"}
	v.check(codeErr, "Codec")
	v.duration("DrainTimeout", config.DrainTimeout, time.Millisecond)
	if err := errors.Join(validateTopic(topic), v.err()); err != nil {
		return nil, err
	}
	if config.Logger == nil {
		config.Logger = watermill.NopLogger{}
	}
	c := newChannel(genericTransport(publisher, subscriber, topic, orDefault(config.DrainTimeout, DefaultDrainTimeout), config.Logger), code)
	c.writer.metadataOf = config.Metadata
	return c, nil
}

// joinHub lets the hub's Close close the channel.
func joinHub[T any](hub *Hub, c *Channel[T]) (*Channel[T], error) {
	c.hub = hub
	if err := hub.add(c); err != nil {
		return nil, err
	}
	return c, nil
}

func newChannel[T any](t transport, code coder[T]) *Channel[T] {
	return &Channel[T]{
		writer: &Writer[T]{state: &writerState{transport: t}, code: code},
		reader: &Reader[T]{feed: newFeed(t.feed), transport: t, code: code},
	}
}

// Writer returns the writing side.
func (c *Channel[T]) Writer() *Writer[T] { return c.writer }

// Reader returns the reading side. There is one per channel; several goroutines may
// read from it and share the values.
func (c *Channel[T]) Reader() *Reader[T] { return c.reader }

// Close ends the reader as [Reader.Close] tells, and the writer: later writes answer
// [ErrClosed], those under way come to their end. Other channels on the same stream,
// in this process too, are not concerned. It may be called often and always returns
// nil.
func (c *Channel[T]) Close() error {
	c.writer.state.close()
	err := c.reader.Close()
	if c.hub != nil {
		c.hub.remove(c)
	}
	return err
}
