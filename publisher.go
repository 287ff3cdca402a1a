package redischannels

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/appender"
	"github.com/flaminco/redischannels/internal/delayed"
	"github.com/flaminco/redischannels/internal/housekeeper"
	"github.com/flaminco/redischannels/internal/lifecycle"
)

// closeGrace is how long Close waits, after the last call has returned, for a connection without
// a reply.
const closeGrace = 5 * time.Second

// Publisher appends messages to Redis Streams. It is safe for concurrent use.
//
// Messages of one call are appended in their order, up to 500 of them (and up to 4 MiB) in one
// transaction: all or none, without messages of other publishers between them. Single messages of
// concurrent calls share pipelines, except those above 64 KiB, which a server may refuse by
// closing the connection. A message is sent again only if the previous attempt has certainly not
// appended it.
//
// A message with the metadata of Watermill's components/delay is appended when it is due, by the
// clock of the Redis server: see docs/delays.md. Until then it is stored in Redis. Until it is
// closed, a Publisher appends due messages in the topics to which it publishes, together with the
// other publishers of the same client; so does every [Housekeeper]. For this it checks each topic
// once, up to 10,000, after its first message to the topic. The check does not delay a message,
// and has no effect without the permission.
type Publisher struct {
	config   PublisherConfig
	logger   watermill.LoggerAdapter
	appender *appender.Appender
	life     *lifecycle.State
	observer *instrument // nil for none

	openKeeper sync.Once
	keeper     *housekeeper.Handle // nil before the first message
	trimmed    sync.Map            // topics that the housekeeper trims
}

var _ message.Publisher = (*Publisher)(nil)

// NewPublisher returns a Publisher. It sends no commands to Redis. With a nil logger, errors are
// written to slog.Default(); watermill.NopLogger writes nothing. The error joins one for each
// invalid field, which wraps [ErrInvalidConfig].
func NewPublisher(config PublisherConfig, logger watermill.LoggerAdapter) (*Publisher, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	config = config.withDefaults()
	return &Publisher{
		config:   config,
		logger:   loggerOrDefault(logger),
		life:     lifecycle.New(ErrClosed),
		observer: newPublishInstrument(config.Instrumentation, loggerOrDefault(logger)),
		appender: appender.New(appender.Config{
			Client:      config.Client,
			Timeout:     config.Timeout,
			Replicas:    config.Durability.Replicas,
			WaitTimeout: config.Durability.Timeout,
		}),
	}, nil
}

// Publish appends the messages to the stream of the topic and returns when Redis has confirmed
// all of them. The context of each message and PublisherConfig.Timeout bound the wait: messages
// that are not sent by then are withdrawn.
//
// All messages are marshaled before the first is sent: if one cannot be marshaled, or exceeds
// MaxPayload, none is sent. The error is a [*PublishError] with the outcome of each message. More
// than 500 messages, or 4 MiB, are several transactions; after a failed one the rest is not sent.
//
// A payload must not be changed while its outcome is unknown.
func (p *Publisher) Publish(topic string, msgs ...*message.Message) error {
	if !p.observer.observes(msgs) {
		return p.publishMessages(topic, msgs)
	}
	return p.observer.publish(msgs[0].Context(), Publication{Topic: topic, Messages: msgs}, func(msgs []*message.Message) error {
		return p.publishMessages(topic, msgs)
	})
}

func (p *Publisher) publishMessages(topic string, msgs []*message.Message) error {
	if err := p.enter(topic); err != nil {
		return err
	}
	defer p.life.Leave()
	if len(msgs) == 0 {
		return nil
	}
	if anyDelayed(msgs) {
		batch, err := p.packAll(topic, msgs, delayed.Due{})
		if err != nil {
			return err
		}
		ctx, stop := joinContexts(msgs)
		defer stop()
		return p.publishDelayed(ctx, batch)
	}
	// Before the contexts are used, because a nil message has none.
	batch, err := p.marshal(topic, msgs)
	if err != nil {
		return err
	}
	if len(msgs) == 1 {
		return p.publish(msgs[0].Context(), batch, nil)
	}
	ctx, stop := joinContexts(msgs)
	defer stop()
	return p.publish(ctx, batch, nil)
}

// Append is Publish with a context, which bounds the wait instead of the messages' contexts, in
// addition to PublisherConfig.Timeout. It returns the IDs of the entries, in the order of the
// messages. The IDs of delayed messages are empty: see [Publisher.AppendResults]. With an error,
// so are the IDs of messages that were not appended or whose outcome is unknown.
func (p *Publisher) Append(ctx context.Context, topic string, msgs ...*message.Message) (ids []string, err error) {
	if !p.observer.observes(msgs) {
		return p.appendMessages(ctx, topic, msgs)
	}
	err = p.observer.publish(ctx, Publication{Topic: topic, Messages: msgs}, func(msgs []*message.Message) (err error) {
		ids, err = p.appendMessages(ctx, topic, msgs)
		return err
	})
	return ids, err
}

func (p *Publisher) appendMessages(ctx context.Context, topic string, msgs []*message.Message) ([]string, error) {
	if err := p.enter(topic); err != nil {
		return nil, err
	}
	defer p.life.Leave()
	if len(msgs) == 0 {
		return nil, nil
	}
	if anyDelayed(msgs) {
		results, err := p.appendDelayed(ctx, topic, msgs, delayed.Due{})
		return entryIDs(results), err
	}
	batch, err := p.marshal(topic, msgs)
	if err != nil {
		return nil, err
	}
	ids := make([]string, len(msgs))
	return ids, p.publish(ctx, batch, ids)
}

// AppendResults is Append with the outcome of each message, in their order, for calls with
// delayed messages. The error is that of Append; if no message was sent, there may be no results.
func (p *Publisher) AppendResults(ctx context.Context, topic string, msgs ...*message.Message) ([]PublishResult, error) {
	return p.appendDue(ctx, topic, msgs, delayed.Due{})
}

// appendDue is AppendResults for messages that are all due at due, unless it is the zero Due.
func (p *Publisher) appendDue(ctx context.Context, topic string, msgs []*message.Message, due delayed.Due) (results []PublishResult, err error) {
	if !p.observer.observes(msgs) {
		return p.appendMessagesDue(ctx, topic, msgs, due)
	}
	err = p.observer.publish(ctx, Publication{Topic: topic, Messages: msgs}, func(msgs []*message.Message) (err error) {
		results, err = p.appendMessagesDue(ctx, topic, msgs, due)
		return err
	})
	return results, err
}

func (p *Publisher) appendMessagesDue(ctx context.Context, topic string, msgs []*message.Message, due delayed.Due) ([]PublishResult, error) {
	if err := p.enter(topic); err != nil {
		return nil, err
	}
	defer p.life.Leave()
	if len(msgs) == 0 {
		return nil, nil
	}
	if !due.IsZero() || anyDelayed(msgs) {
		return p.appendDelayed(ctx, topic, msgs, due)
	}
	batch, err := p.marshal(topic, msgs)
	if err != nil {
		return nil, err
	}
	err = p.publish(ctx, batch, nil)
	return batch.publishResults(), err
}

// Close waits for running calls, for at most PublisherConfig.Timeout (with NoPublishTimeout:
// DefaultPublishTimeout, after which they are ended), and returns when no goroutine of the
// Publisher is left. Later calls return [ErrClosed]. The Redis client stays open. Close may be
// called several times and at any time. It returns an error if a connection still has no reply,
// which is only possible if the client has longer timeouts, or [ErrCloseTimeout] 20 s after three
// times these timeouts.
func (p *Publisher) Close() error {
	return p.life.CloseWithin(p.closing(), p.stop)
}

// closing is how long Close may take by the timeouts of the publisher.
func (p *Publisher) closing() time.Duration { return 3 * p.patience() }

// patience is how long Close waits for running calls. Most end by their own timeouts.
func (p *Publisher) patience() time.Duration {
	if p.config.Timeout > 0 {
		return p.config.Timeout + p.config.Durability.Timeout + time.Second
	}
	return DefaultPublishTimeout
}

func (p *Publisher) stop() error {
	patience := p.patience()
	timer := time.AfterFunc(patience, p.appender.Stop)
	<-p.life.Idle()
	if !timer.Stop() {
		p.logger.Info("Close has ended running calls", watermill.LogFields{"waited": patience})
	}

	ctx, cancel := context.WithTimeout(context.Background(), closeGrace+2*max(p.config.Timeout, 0))
	defer cancel()
	err := p.appender.Close(ctx)
	if p.keeper != nil {
		err = errors.Join(err, p.keeper.Close())
	}
	if err != nil {
		return fmt.Errorf("redischannels: close publisher: a connection to Redis still waits for a reply: %w", err)
	}
	return nil
}

// enter begins a call; life.Leave must follow when it returned nil.
func (p *Publisher) enter(topic string) error {
	if err := p.life.Enter(); err != nil {
		return fmt.Errorf("redischannels: publish to %q: %w", topic, err)
	}
	err := validateTopic(topic)
	if err == nil {
		err = p.retain(topic)
	}
	if err != nil {
		p.life.Leave()
	}
	return err
}

// publish sends a batch in chunks and collects the outcomes.
func (p *Publisher) publish(ctx context.Context, batch *publishBatch, ids []string) error {
	var deadline time.Time
	if p.config.Timeout > 0 {
		deadline = time.Now().Add(p.config.Timeout)
	}
	results := batch.results
	failed := false
	for start := 0; start < len(batch.cmds); {
		end, bytes := chunk(batch.sizes, start)
		part := results[start:end]
		if failed {
			for i := range part {
				part[i].Err = errEarlierFailed
			}
		} else {
			p.appender.Do(ctx, deadline, batch.head, batch.cmds[start:end:end], bytes, part)
		}
		for i := range part {
			failed = failed || part[i].Outcome != appender.Appended
		}
		start = end
	}
	if ids != nil {
		for i := range results {
			ids[i] = results[i].ID
		}
	}
	if !failed {
		lookOnce(p.housekeeper(), batch.topic, p.config.SideKeys, p.config.Client)
		return nil
	}
	return &PublishError{Topic: batch.topic, Results: batch.publishResults()}
}

var errEarlierFailed = errors.New("not sent, because an earlier message failed")

// joinContexts returns a context that ends with the first of the messages' contexts. It allocates
// nothing if none of them can end or all are the same.
func joinContexts(msgs []*message.Message) (context.Context, func()) {
	ctx := msgs[0].Context()
	last := ctx.Done() // contexts themselves need not be comparable
	var cancel context.CancelCauseFunc
	var stops []func() bool
	for _, msg := range msgs[1:] {
		other := msg.Context()
		if other.Done() == nil || other.Done() == last {
			continue
		}
		last = other.Done()
		if ctx.Done() == nil && cancel == nil {
			ctx = other
			continue
		}
		if cancel == nil {
			ctx, cancel = context.WithCancelCause(ctx)
		}
		stops = append(stops, context.AfterFunc(other, func() { cancel(context.Cause(other)) }))
	}
	return ctx, func() {
		for _, stop := range stops {
			stop()
		}
		if cancel != nil {
			cancel(nil)
		}
	}
}

// PublisherConfig configures [NewPublisher], and as StreamChannelConfig.Publisher the
// writing side of a channel. Only Client is required.
type PublisherConfig struct {
	// Client is used for all commands and is never closed. *redis.Client, also
	// from redis.NewFailoverClient, and *redis.ClusterClient are supported. A channel
	// uses the client of its hub. Its hooks are called for all appends.
	Client redis.UniversalClient

	// Marshaler turns messages into entries. Defaults to WatermillMarshaler.
	Marshaler Marshaler

	// Retention bounds the streams of the topics. Defaults to no bound.
	Retention Retention

	// TopicRetention overrides Retention for single topics. The map is copied.
	// Defaults to none.
	TopicRetention map[string]Retention

	// SideKeys returns the base of a topic's side keys, with which their names begin. Consumer
	// groups, dead letters, delayed messages and schedules need them (see docs/wire.md). It must
	// return the same base in every program that uses the topic, and in Redis Cluster a name with
	// a hash tag of the topic's slot. Defaults to the topic if it has a hash tag, and to
	// `{topic}` otherwise; a topic with a `}` and no hash tag has no default. A channel uses the
	// one of its hub.
	SideKeys func(topic string) string

	// Durability makes Publish wait for the confirmation of replicas. Defaults to the master
	// only.
	Durability Durability

	// MaxPayload is the maximum size of a message, in bytes of all its fields. Defaults to
	// DefaultMaxPayload; UnlimitedPayload turns it off.
	MaxPayload int

	// Timeout bounds one Publish or Append, including retries of messages that were not sent, at
	// least 1 ms. Too low makes publishing fail in short outages; too high blocks callers in long
	// ones. Defaults to DefaultPublishTimeout; NoPublishTimeout turns it off.
	Timeout time.Duration

	// Instrumentation observes the messages. A channel uses the one of its hub. Defaults to none.
	Instrumentation Instrumentation
}

// Durability is the number of replicas that must confirm a message before Publish returns nil. It
// narrows the window in which a failover loses confirmed messages but does not close it: Redis
// may promote a replica that does not have the most data. (WAIT)
type Durability struct {
	Replicas int           // number of replicas, up to 1,000. 0 does not wait for replicas
	Timeout  time.Duration // maximum wait, at least 1 ms. Defaults to half of PublisherConfig.Timeout, or of its default if that is off
}

// withDefaults returns a copy in which zeros are replaced and the map is cloned.
func (c PublisherConfig) withDefaults() PublisherConfig {
	if c.Marshaler == nil {
		c.Marshaler = WatermillMarshaler{}
	}
	c.Retention.TrimConsumed = c.Retention.TrimConsumed.clone()
	c.TopicRetention = maps.Clone(c.TopicRetention)
	for topic, r := range c.TopicRetention {
		r.TrimConsumed = r.TrimConsumed.clone()
		c.TopicRetention[topic] = r
	}
	c.MaxPayload = orDefault(c.MaxPayload, DefaultMaxPayload)
	c.Timeout = orDefault(c.Timeout, DefaultPublishTimeout)
	if c.Durability.Replicas > 0 && c.Durability.Timeout == 0 {
		c.Durability.Timeout = DefaultPublishTimeout / 2
		if c.Timeout > 0 {
			c.Durability.Timeout = max(c.Timeout/2, time.Millisecond)
		}
	}
	return c
}

// Validate reports every problem of the configuration in one joined error. Each
// names its field and wraps [ErrInvalidConfig]. Zero values stand for defaults
// and are valid, except Client.
func (c PublisherConfig) Validate() error {
	v := validation{prefix: "PublisherConfig"}
	v.client(c.Client)
	c.withDefaults().validate(&v)
	return v.err()
}

// validate checks everything but Client, with the defaults filled in.
func (c PublisherConfig) validate(v *validation) {
	v.check(c.Retention.validate(), "Retention")
	for topic, r := range c.TopicRetention {
		v.check(r.validate(), fmt.Sprintf("TopicRetention[%q]", topic))
	}
	v.intRange("Durability.Replicas", c.Durability.Replicas, 0, 1000, "")
	v.duration("Durability.Timeout", c.Durability.Timeout, time.Millisecond)
	if c.Durability.Timeout > 0 && c.Durability.Replicas == 0 {
		v.addf("Durability.Timeout", "needs Durability.Replicas above 0")
	}
	v.intRange("MaxPayload", c.MaxPayload, UnlimitedPayload, 1<<40, "UnlimitedPayload")
	v.publishTimeout("Timeout", c.Timeout)
}
