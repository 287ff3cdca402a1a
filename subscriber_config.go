package redischannels

import (
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/redisconn"
)

// SubscriberConfig configures [NewSubscriber], and as StreamChannelConfig.Subscriber the
// reading side of a channel. Only Client is required.
type SubscriberConfig struct {
	// Client is used for all commands except blocking reads, for which connections are opened
	// with its options (hooks are not copied; see OnReadClient). It is never closed.
	// *redis.Client, also from redis.NewFailoverClient, and *redis.ClusterClient are supported.
	// For a *redis.Client without a ReadTimeout or WriteTimeout (-1) the library uses its
	// WithTimeout, with the same hooks, and the other of the two, or 5 s, because commands to a
	// silent server would not end. This is not possible for a ClusterClient: without timeouts Close waits until the
	// connections are lost. A channel uses the client of its hub.
	Client redis.UniversalClient

	// Unmarshaler decodes entries as messages. Defaults to WatermillMarshaler.
	Unmarshaler Unmarshaler

	// ConsumerGroup is the consumer group of the subscriptions: each entry is delivered to one of
	// its consumers, in any process. Empty, or NoConsumerGroup, means fan-out: every subscription
	// receives every entry and no state is stored in Redis. (XREADGROUP GROUP; XREAD without a
	// group)
	ConsumerGroup string

	// Consumer is the first part of the consumer's name in Redis, which XINFO CONSUMERS lists. A
	// suffix that is unique per subscription is always added; recovery does not depend on the
	// name. Defaults to the host name.
	Consumer string

	// StartFrom is the position at which a new consumer group begins, and at which fan-out
	// subscriptions begin. An existing group resumes at its own position. Defaults to Oldest for
	// a group and to Latest for fan-out. (XGROUP CREATE)
	StartFrom Position

	// MaxInFlight is the maximum number of messages of one subscription that are delivered and
	// not yet acknowledged, 1 to 100,000. 1 keeps the order of the stream: a nacked message
	// blocks those behind it. Higher lets more handlers run at a time, and redelivers more
	// messages after a crash. Defaults to DefaultMaxInFlight, on a channel to
	// DefaultChannelMaxInFlight.
	MaxInFlight int

	// OrderingKey, with MaxInFlight above 1, keeps the order among messages of the same key: at
	// most one of them is in flight, and a nacked one blocks its key. It is called once per
	// delivery and must not change the message. Defaults to no order above MaxInFlight 1.
	OrderingKey func(*message.Message) string

	// MaxDeliveries is the number of deliveries to a handler after which a message is
	// dead-lettered, or, without a group, skipped. A delivery that ends with a crash of the
	// process counts, a release on Close does not. Too low dead-letters messages in short
	// outages; too high keeps handlers busy with a message that can never succeed. With
	// NackBackoff it is a duration: the defaults dead-letter a message after 351 s, so a
	// downstream outage of six minutes makes dead letters. 400 deliveries with a NackBackoff of
	// up to 5 minutes last for a day. In strict order use UnlimitedDeliveries with [Permanent]
	// errors: a failing message blocks the messages behind it in any case. Defaults to
	// DefaultMaxDeliveries; UnlimitedDeliveries turns it off.
	MaxDeliveries int

	// NackBackoff is the delay between a Nack and the redelivery, in memory. A delay above
	// Tuning.MinIdle is safe: the lease of the message is renewed. Together with MaxDeliveries it
	// determines how long a message is retried, 351 s by default.
	NackBackoff Backoff

	// DeferAfter is the delay, at least 1 ms, above which a retry that the application requests
	// ([RetryAfter], [Postpone], an error with a delay) is deferred: it waits in Redis, in
	// `base:delayed`, where it takes no room in the subscription and survives a restart, and then
	// returns to this group only. Close defers the retries whose remaining delay is longer. With
	// an order (MaxInFlight 1, or an OrderingKey) the retry waits in the process and blocks the
	// messages behind it. Defaults to Tuning.MinIdle; NeverDefer turns it off.
	DeferAfter time.Duration

	// MaxDeferred is the maximum number of deferred retries of the group, 1 to 1,000,000. Further
	// retries wait in memory. Defaults to DefaultMaxDeferred.
	MaxDeferred int

	// HandlerTimeout bounds the handling of one delivery, at least 1 ms, from the moment at which
	// the application has received it. Then the message's context is canceled and the delivery
	// counts as nacked. Defaults to no bound.
	HandlerTimeout time.Duration

	// SideKeys is that of PublisherConfig. A channel uses the one of its hub.
	SideKeys func(topic string) string

	// DeadLetterTopic returns the name of the dead-letter stream of a topic. In Redis Cluster it
	// must be in the topic's hash slot. Defaults to `base:dead`, where base is that of SideKeys:
	// see DefaultDeadLetterTopic.
	DeadLetterTopic func(topic string) string

	// DeadLetterRetention bounds the dead-letter stream, by MaxLen or MaxAge. Exact is only for
	// MaxLen: an exact MINID can leave a stream with deleted entries, as after a requeue, unreadable
	// for Redis at its next start. Defaults to no bound.
	DeadLetterRetention Retention

	// HideHandlerErrors keeps the texts of handlers' errors, which may quote a payload, out of
	// Redis and of events: the reason of a dead letter is then the number of deliveries, or that
	// it was rejected. Defaults to false: the reason is the last error, at most 1,024 bytes of
	// it, if [HandlerErrors] or [Reader.Handle] has seen it.
	HideHandlerErrors bool

	// MaxPayload is the maximum size of an entry, in bytes of all its fields, that is decoded; a
	// larger entry is treated as undecodable. Defaults to DefaultMaxPayload; UnlimitedPayload
	// turns it off.
	MaxPayload int

	// OnEvent receives the events of the subscriptions, those of one subscription one after the
	// other, from several goroutines. In a group a slow OnEvent delays nothing until 1,000 events
	// wait; without a group, reading and delivering wait for it. The end of a subscription waits
	// at most 5 s for OnEvent; later events are only logged. It must not call Close (start a
	// goroutine for that). A panic in it is recovered. Defaults to none: events are only logged.
	// A channel uses the one of its hub.
	OnEvent func(Event)

	// Instrumentation observes the deliveries of messages. Defaults to none. A channel uses the one
	// of its hub.
	Instrumentation Instrumentation

	// OnReadClient receives every client that is opened for blocking reads, and for other
	// commands that must not wait for connections of Client, before it is used, so that hooks
	// for tracing or metrics can be added. A hook must not change keys. Defaults to none. A
	// channel uses the one of its hub.
	OnReadClient func(*redis.Client)

	// Tuning has the less common settings.
	Tuning Tuning
}

// Tuning has the less common settings of a [SubscriberConfig].
type Tuning struct {
	// MinIdle is the idle time after which another consumer may claim an entry, at least 30 ms.
	// Every consumer of a group must use the same value. A consumer renews the leases of its
	// entries every third of it, so handlers may run for any time. Lower means faster recovery
	// from a crash, but a process or a network that stalls for longer loses its messages to other
	// consumers, which handle them a second time. Defaults to DefaultMinIdle. (XAUTOCLAIM
	// min-idle-time)
	MinIdle time.Duration

	// ClaimInterval is the time between two claim scans for entries of crashed consumers, at
	// least 1 ms, with 10 % jitter. Lower finds such entries sooner and costs more commands.
	// Defaults to DefaultClaimInterval. (XAUTOCLAIM)
	ClaimInterval time.Duration

	// BlockTime is how long one read waits in Redis for entries, at least 1 ms. If a third of
	// MinIdle is less, that is used. It determines how soon a half-open connection is detected,
	// not how soon messages arrive. Lower costs more commands on an idle topic. Defaults to
	// DefaultBlockTime. (XREADGROUP BLOCK)
	BlockTime time.Duration

	// DrainTimeout is how long Close, or the end of the Subscribe context, waits for handlers, at
	// least 1 ms. Messages whose handlers take longer are redelivered to another consumer.
	// Defaults to DefaultDrainTimeout.
	DrainTimeout time.Duration

	// ConsumerTimeout is the idle time, at least 1 ms, after which a consumer without pending
	// entries is removed from the group, even one of another library. Removing an active consumer
	// does no harm. Defaults to DefaultConsumerTimeout. (XGROUP DELCONSUMER)
	ConsumerTimeout time.Duration

	// Prefetch is the maximum number of entries that are buffered in the process in addition to
	// those in flight, at most 100,000. Within this bound the number adapts to what the handlers
	// finish in about 100 ms. Defaults to DefaultPrefetch; NoPrefetch turns it off, which costs a
	// round trip per message. (XREADGROUP COUNT)
	Prefetch int

	// PrefetchBytes bounds the buffered entries in bytes. Entries are read as a whole, so a
	// single entry may exceed it. Defaults to DefaultPrefetchBytes.
	PrefetchBytes int
}

// withDefaults returns a copy in which zeros are replaced.
func (c SubscriberConfig) withDefaults() SubscriberConfig {
	if c.Unmarshaler == nil {
		c.Unmarshaler = WatermillMarshaler{}
	}
	if c.ConsumerGroup == NoConsumerGroup {
		c.ConsumerGroup = ""
	}
	if c.ConsumerGroup == "" {
		c.StartFrom = c.StartFrom.or(Latest)
	} else {
		c.StartFrom = c.StartFrom.or(Oldest)
	}
	c.MaxInFlight = orDefault(c.MaxInFlight, DefaultMaxInFlight)
	c.MaxDeliveries = orDefault(c.MaxDeliveries, DefaultMaxDeliveries)
	c.MaxPayload = orDefault(c.MaxPayload, DefaultMaxPayload)
	c.NackBackoff = c.NackBackoff.withDefaults()
	c.Tuning.MinIdle = orDefault(c.Tuning.MinIdle, DefaultMinIdle)
	c.DeferAfter = orDefault(c.DeferAfter, c.Tuning.MinIdle)
	c.MaxDeferred = orDefault(c.MaxDeferred, DefaultMaxDeferred)
	c.Tuning.ClaimInterval = orDefault(c.Tuning.ClaimInterval, DefaultClaimInterval)
	c.Tuning.BlockTime = orDefault(c.Tuning.BlockTime, DefaultBlockTime)
	c.Tuning.DrainTimeout = orDefault(c.Tuning.DrainTimeout, DefaultDrainTimeout)
	c.Tuning.ConsumerTimeout = orDefault(c.Tuning.ConsumerTimeout, DefaultConsumerTimeout)
	c.Tuning.Prefetch = orDefault(c.Tuning.Prefetch, DefaultPrefetch)
	c.Tuning.PrefetchBytes = orDefault(c.Tuning.PrefetchBytes, DefaultPrefetchBytes)
	return c
}

// Validate reports every problem of the configuration in one joined error. Each
// names its field and wraps [ErrInvalidConfig]. Zero values stand for defaults
// and are valid, except Client.
func (c SubscriberConfig) Validate() error {
	v := validation{prefix: "SubscriberConfig"}
	v.client(c.Client)
	c.withDefaults().validate(&v)
	return v.err()
}

// validate checks everything but Client, with the defaults filled in.
func (c SubscriberConfig) validate(v *validation) {
	v.check(c.StartFrom.validate(), "StartFrom")
	v.intRange("MaxInFlight", c.MaxInFlight, 1, maxInFlightLimit, "")
	v.intRange("MaxDeliveries", c.MaxDeliveries, UnlimitedDeliveries, 1<<30, "UnlimitedDeliveries")
	v.intRange("MaxPayload", c.MaxPayload, UnlimitedPayload, 1<<40, "UnlimitedPayload")
	v.check(c.NackBackoff.validate(), "NackBackoff")
	v.check(c.DeadLetterRetention.validateDeadLetters(), "DeadLetterRetention")
	if c.DeferAfter != NeverDefer && c.DeferAfter != c.Tuning.MinIdle {
		v.duration("DeferAfter", c.DeferAfter, time.Millisecond)
	}
	v.intRange("MaxDeferred", c.MaxDeferred, 1, 1_000_000, "")
	v.duration("HandlerTimeout", c.HandlerTimeout, time.Millisecond)
	v.within("Tuning", c.Tuning.validate)
}

func (t Tuning) validate(v *validation) {
	v.duration("MinIdle", t.MinIdle, minMinIdle)
	v.duration("ClaimInterval", t.ClaimInterval, time.Millisecond)
	v.duration("BlockTime", t.BlockTime, minBlockTime)
	v.duration("DrainTimeout", t.DrainTimeout, time.Millisecond)
	v.duration("ConsumerTimeout", t.ConsumerTimeout, time.Millisecond)
	v.intRange("Prefetch", t.Prefetch, NoPrefetch, prefetchLimit, "NoPrefetch")
	v.intRange("PrefetchBytes", t.PrefetchBytes, 1, 1<<40, "")
}

// subscriberSettings is the configuration of a Subscriber with the defaults filled in, and
// internal settings.
type subscriberSettings struct {
	SubscriberConfig // its Client is bounded

	caller redis.UniversalClient // Client of the caller
}

func (c SubscriberConfig) settings() subscriberSettings {
	s := subscriberSettings{SubscriberConfig: c.withDefaults(), caller: c.Client}
	s.Client = bounded(c.Client)
	return s
}

// deferred returns the maximum number of deferred retries.
func (c SubscriberConfig) deferred() int {
	if c.DeferAfter == NeverDefer {
		return 0
	}
	return c.MaxDeferred
}

// clientTimeout is the timeout of clients without one; 5 s is the default of go-redis.
const clientTimeout = 5 * time.Second

// bounded returns a client whose commands end even if the server is silent, if possible.
func bounded(client redis.UniversalClient) redis.UniversalClient {
	c, ok := client.(*redis.Client)
	if !ok {
		return client
	}
	read, write := c.Options().ReadTimeout, c.Options().WriteTimeout
	if read > 0 && write > 0 {
		return client
	}
	timeout := max(read, write)
	if timeout <= 0 {
		timeout = clientTimeout
	}
	return redisconn.WithTimeout(c, timeout)
}
