package redischannels

import (
	"context"
	"errors"
	"iter"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
)

// Channel is a stream of values of T that some write and others read, in this process
// or elsewhere: a facade over a Watermill publisher and subscriber. (It is no Go
// channel, and no channel of Redis Pub/Sub.) It is safe for concurrent use.
type Channel[T any] struct {
	writer   *Writer[T]
	reader   *Reader[T]
	hub      *Hub // nil for NewChannel
	closing  sync.Once
	closeErr error
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
	config = hub.streamConfig(&v, config)
	code, err := newCoder(config.Codec)
	v.check(err, "Codec")
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
	return newPubSubChannel(hub, name, config, newCoder[T])
}

// newPubSubChannel makes a channel with the coder that newCoder makes of its codec.
func newPubSubChannel[T any](hub *Hub, name string, config PubSubChannelConfig, newCoder func(Codec) (coder[T], error)) (*Channel[T], error) {
	v := validation{prefix: "PubSubChannelConfig"}
	config = hub.pubSubConfig(&v, config)
	code, err := newCoder(config.Codec)
	v.check(err, "Codec")
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

// joinHub lets the hub's Close close the channel.
func joinHub[T any](hub *Hub, c *Channel[T]) (*Channel[T], error) {
	c.hub = hub
	if err := hub.add(c); err != nil {
		return nil, errors.Join(err, c.Close())
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

// Close closes the writer, so that later writes return [ErrClosed], and the reader, as
// [Reader.Close] does. Other channels are not concerned, also on the same stream. If no
// other channel of the hub has equal settings, its publisher and subscriber are closed as
// well, which waits for the writes under way as [Publisher.Close] does. It may be called
// often and from anywhere but OnEvent; the error is that of closing the connections.
func (c *Channel[T]) Close() error {
	c.closing.Do(func() {
		c.writer.state.close()
		_ = c.reader.Close() // always nil
		if c.hub != nil {
			c.closeErr = c.writer.state.transport.release()
			c.hub.remove(c)
		}
	})
	return c.closeErr
}
