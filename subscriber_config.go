package redischannels

import (
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
)

// SubscriberConfig configures [NewSubscriber], and as StreamChannelConfig.Subscriber the
// reading side of a channel. Only Client is required.
type SubscriberConfig struct {
	// Client is used for all commands but the blocking reads, for which connections
	// are opened from its options (hooks are not copied; see OnReadClient). It is never
	// closed. *redis.Client, also from redis.NewFailoverClient, and
	// *redis.ClusterClient are supported. A *redis.Client without a ReadTimeout or
	// WriteTimeout (-1) is used by its WithTimeout, with the other of the two, or 5 s,
	// since nothing would end on a server that is silent. A ClusterClient cannot be used
	// so: without timeouts Close waits until the connections are lost. A channel uses the
	// client of its hub.
	Client redis.UniversalClient

	// Unmarshaler turns entries into messages. Defaults to WatermillMarshaler.
	Unmarshaler Unmarshaler

	// ConsumerGroup is the consumer group to read in: each entry goes to one of its
	// consumers, in whatever process. Empty, or NoConsumerGroup, means fan-out: every
	// subscription sees every entry and nothing is stored in Redis.
	// (XREADGROUP GROUP; XREAD without a group)
	ConsumerGroup string

	// Consumer is the first part of the consumer's name in Redis, for people who
	// look at XINFO CONSUMERS. A suffix that is unique per subscription is always
	// added; recovery never depends on the name. Defaults to the host name.
	Consumer string

	// StartFrom is where a consumer group that does not exist yet begins, and
	// where fan-out subscriptions begin. An existing group resumes where it stands.
	// Defaults to Oldest for a group and to Latest for fan-out. (XGROUP CREATE)
	StartFrom Position

	// MaxInFlight is how many messages of one subscription may be delivered and not yet
	// acknowledged, 1 to 100,000. 1 keeps the order of the stream: a nacked message
	// holds back those behind it. More lets slow handlers work at the same time, and
	// more messages come again after a crash. Defaults to DefaultMaxInFlight, on a
	// channel to DefaultChannelMaxInFlight.
	MaxInFlight int

	// OrderingKey, with MaxInFlight above 1, keeps the order among messages of
	// the same key: at most one of them is in flight, a nacked one holds back
	// its key. It is called once per delivery and must not change the message.
	// Defaults to no order above MaxInFlight 1.
	OrderingKey func(*message.Message) string

	// MaxDeliveries is how often a message is delivered to a handler before it moves
	// to the dead letters, or, without a group, is skipped. A delivery that ends in a
	// crash of the process counts, a release on Close does not. Too low turns passing
	// trouble into dead letters; too high keeps handlers busy with a message that can
	// never succeed. With NackBackoff it is a time: the defaults give a message up after 351 s,
	// so that six minutes of an outage downstream make dead letters. 400 deliveries with a
	// NackBackoff of up to 5 minutes ride out a day. In strict order UnlimitedDeliveries with
	// [Permanent] errors loses nothing: no message passes the one that fails anyway.
	// Defaults to DefaultMaxDeliveries; UnlimitedDeliveries turns it off.
	MaxDeliveries int

	// NackBackoff is the delay between a Nack and the redelivery, in memory. One
	// above Tuning.MinIdle is safe: the message stays leased. Together with MaxDeliveries it
	// determines for how long a message is retried, 351 s by default.
	NackBackoff Backoff

	// DeferAfter is the delay, at least 1 ms, above which a retry that the application asks for
	// ([RetryAfter], [Postpone], an error with a delay) is deferred: it waits in Redis, in
	// `base:delayed`, where it takes no room in the subscription and survives a restart, and then
	// returns to this group alone. So does what is left of longer delays at Close. Where there is an
	// order (MaxInFlight 1, or an OrderingKey) such a delay holds within the process only, and what
	// comes behind waits for it. Defaults to Tuning.MinIdle; NeverDefer turns it off.
	DeferAfter time.Duration

	// MaxDeferred is how many retries of the group may be deferred, 1 to 1,000,000. Beyond it they
	// wait in memory. Defaults to DefaultMaxDeferred.
	MaxDeferred int

	// HandlerTimeout bounds the handling of one delivery, at least 1 ms, from the moment at
	// which the application has received it: after it the message's context is cancelled
	// and the delivery counts as nacked. Defaults to no bound.
	HandlerTimeout time.Duration

	// SideKeys is that of PublisherConfig. A channel uses the one of its hub.
	SideKeys func(topic string) string

	// DeadLetterTopic names the stream for dead letters of a topic. In Redis
	// Cluster it must lie in the topic's hash slot. Defaults to `base:dead`, where
	// base is that of SideKeys: see DefaultDeadLetterTopic.
	DeadLetterTopic func(topic string) string

	// DeadLetterRetention bounds the dead-letter stream. Exact is for MaxLen only:
	// an exact MINID can leave a stream that had deletions, as requeueing makes
	// them, unreadable for Redis at its next start. Defaults to no bound.
	DeadLetterRetention Retention

	// HideHandlerErrors keeps the texts of handlers' errors, which may quote a payload, out of
	// Redis and of events: the reason of a dead letter says how often it was delivered, or that
	// it was rejected. Defaults to false: the last error, at most 1,024 bytes of it, is the
	// reason, as far as [HandlerErrors] or [Reader.Handle] has seen it.
	HideHandlerErrors bool

	// MaxPayload is the largest entry, in bytes of all its fields, that is
	// decoded; a larger one is treated as undecodable. Defaults to
	// DefaultMaxPayload; UnlimitedPayload turns it off.
	MaxPayload int

	// OnEvent receives the events of the subscriptions, those of one subscription one after
	// the other, from several goroutines. In a group a slow OnEvent delays nothing until
	// 1,000 events wait; without a group, reading and delivering wait for it. The end of a
	// subscription waits at most 5 s for OnEvent: what it has not received by then is only
	// logged. It must not call Close (start a goroutine for that). A panic in it is
	// recovered. Defaults to none: events are only logged. A channel uses the one of its
	// hub.
	OnEvent func(Event)

	// OnReadClient receives every client that is opened for blocking reads, and for other
	// commands that must not wait for connections of Client, before it is used, so that hooks
	// for tracing or metrics can be added. A hook must not change keys. Defaults to none. A
	// channel uses the one of its hub.
	OnReadClient func(*redis.Client)

	// Tuning has what few need to change.
	Tuning Tuning
}

// Tuning has the less common settings of a [SubscriberConfig].
type Tuning struct {
	// MinIdle is how long an entry must have been idle before another
	// consumer may claim it, at least 30 ms. Every consumer of a group must use
	// the same. Entries that a consumer holds are renewed every third of it, so handlers
	// may take any time. Lower means faster recovery from a crash, but a process or a
	// network that stalls for longer loses its messages to other consumers, which handle
	// them a second time. Defaults to DefaultMinIdle. (XAUTOCLAIM min-idle-time)
	MinIdle time.Duration

	// ClaimInterval is the time between two claim scans for entries of crashed
	// consumers, at least 1 ms, with 10 % jitter. Lower means that such entries are
	// found sooner, and costs a command each time. Defaults to DefaultClaimInterval.
	// (XAUTOCLAIM)
	ClaimInterval time.Duration

	// BlockTime is how long one read waits in Redis for entries, at least 1 ms.
	// A third of MinIdle is used when that is less. It decides how soon a
	// half-open connection is noticed, not how soon messages arrive; lower costs more
	// commands on an idle topic. Defaults to DefaultBlockTime. (XREADGROUP BLOCK)
	BlockTime time.Duration

	// DrainTimeout is how long Close, or the end of the Subscribe context, waits
	// for handlers, at least 1 ms. Messages whose handlers take longer are delivered
	// again to another consumer. Defaults to DefaultDrainTimeout.
	DrainTimeout time.Duration

	// ConsumerTimeout is after what idle time, at least 1 ms, a consumer without
	// pending entries is removed from the group, whichever library made it. Removing one
	// that is alive does no harm. Defaults to DefaultConsumerTimeout. (XGROUP DELCONSUMER)
	ConsumerTimeout time.Duration

	// Prefetch is how many entries may be buffered in the process beyond those in
	// flight, at most 100,000. Within this bound it adapts to what the handlers
	// finish in about 100 ms. Defaults to DefaultPrefetch; NoPrefetch turns it
	// off, which costs a round trip per message. (XREADGROUP COUNT)
	Prefetch int

	// PrefetchBytes bounds the same in bytes. Entries are read whole, so one
	// entry may exceed it. Defaults to DefaultPrefetchBytes.
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
	v.check(c.DeadLetterRetention.validate(), "DeadLetterRetention")
	if c.DeadLetterRetention.Exact && c.DeadLetterRetention.MaxAge > 0 {
		v.addf("DeadLetterRetention", "Exact is for MaxLen, not for MaxAge")
	}
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

// subscriberSettings is what a Subscriber works with: its configuration with the
// defaults filled in, and what only this package sets.
type subscriberSettings struct {
	SubscriberConfig // its Client is bounded

	caller redis.UniversalClient // Client as it was given
}

func (c SubscriberConfig) settings() subscriberSettings {
	s := subscriberSettings{SubscriberConfig: c.withDefaults(), caller: c.Client}
	s.Client = bounded(c.Client)
	return s
}

// deferred returns how many retries may be deferred.
func (c SubscriberConfig) deferred() int {
	if c.DeferAfter == NeverDefer {
		return 0
	}
	return c.MaxDeferred
}

// clientTimeout is that of clients without one, and the default of go-redis.
const clientTimeout = 5 * time.Second

// bounded returns a client whose commands end on a silent server too, if there is a way.
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
	return c.WithTimeout(timeout) // with the same connections and hooks
}
