package redischannels

import (
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
)

// Defaults of the configurations.
const (
	DefaultMaxInFlight     = 1
	DefaultMaxDeliveries   = 20
	DefaultMinIdle         = 15 * time.Second
	DefaultClaimInterval   = 15 * time.Second
	DefaultBlockTime       = 5 * time.Second
	DefaultDrainTimeout    = 10 * time.Second
	DefaultConsumerTimeout = time.Hour
	DefaultPrefetch        = 1024
	DefaultPrefetchBytes   = 8 << 20
	DefaultPublishTimeout  = 10 * time.Second
	DefaultMaxPayload      = 64 << 20

	DefaultBackoffMin    = 100 * time.Millisecond
	DefaultBackoffMax    = 30 * time.Second
	DefaultBackoffFactor = 2.0
	DefaultBackoffJitter = 0.2
)

// Values that turn something off.
const (
	// UnlimitedDeliveries as MaxDeliveries redelivers a message for ever.
	UnlimitedDeliveries = -1
	// NoPrefetch as Tuning.Prefetch fetches only what can be handled at once.
	NoPrefetch = -1
	// NoJitter as Backoff.Jitter makes delays exact.
	NoJitter = -1
	// NoPublishTimeout as PublisherConfig.Timeout leaves the bound to the
	// messages' contexts and to the Redis client.
	NoPublishTimeout time.Duration = -1
	// UnlimitedPayload as MaxPayload leaves the bound to Redis (512 MB).
	UnlimitedPayload = -1
)

// Limits of the configurations.
const (
	maxInFlightLimit = 100_000
	prefetchLimit    = 100_000
	minBlockTime     = time.Millisecond
	minMinIdle       = 30 * time.Millisecond
	maxDuration      = 365 * 24 * time.Hour
)

// SubscriberConfig configures [NewSubscriber]. Only Client is required.
type SubscriberConfig struct {
	// Client is used for all commands but the blocking reads, for which
	// connections of their own are opened from its options (hooks are not
	// copied; see OnReadClient). It is never closed. *redis.Client, also from
	// redis.NewFailoverClient, and *redis.ClusterClient are supported. Without a
	// ReadTimeout or WriteTimeout (-1) it is used by its WithTimeout, with the other of
	// the two, or 5 s: nothing would end on a server that is silent. A ClusterClient
	// cannot be used so: without them Close waits until the connections are lost.
	Client redis.UniversalClient

	// Unmarshaler turns entries into messages. Defaults to WatermillMarshaler.
	Unmarshaler Unmarshaler

	// ConsumerGroup is the group to consume in. Empty means fan-out: every
	// subscription sees every message and nothing is stored in Redis.
	ConsumerGroup string

	// Consumer is the first part of the consumer's name in Redis, for people who
	// look at XINFO CONSUMERS. A suffix that is unique per subscription is always
	// added; recovery never depends on the name. Defaults to the host name.
	Consumer string

	// StartFrom is where a consumer group that does not exist yet begins, and
	// where fan-out subscriptions begin. An existing group goes on where it is.
	// Defaults to Oldest for a group and to Latest for fan-out.
	StartFrom Position

	// MaxInFlight is how many messages of one subscription may be handed out and
	// not yet settled, 1 to 100,000. 1 keeps the order of the stream: a nacked
	// message holds back those behind it. Defaults to DefaultMaxInFlight.
	MaxInFlight int

	// OrderingKey, with MaxInFlight above 1, keeps the order among messages of
	// the same key: at most one of them is in flight, a nacked one holds back
	// its key. It is called once per delivery and must not change the message.
	OrderingKey func(*message.Message) string

	// MaxDeliveries is how often a message is handed to a handler before it goes
	// to the dead-letter stream, or, without a group, is passed. A delivery that
	// ends in the death of the process counts, handing back on Close does not.
	// Defaults to DefaultMaxDeliveries; UnlimitedDeliveries turns it off.
	MaxDeliveries int

	// NackBackoff is the delay between a Nack and the redelivery.
	NackBackoff Backoff

	// HandlerTimeout bounds the handling of one delivery, at least 1 ms, from the moment at
	// which the application has received it: after it the message's context is cancelled
	// and the delivery counts as nacked. 0 means none.
	HandlerTimeout time.Duration

	// DeadLetterTopic names the stream for dead letters of a topic. In Redis
	// Cluster it must lie in the topic's hash slot. Defaults to
	// DefaultDeadLetterTopic.
	DeadLetterTopic func(topic string) string

	// DeadLetterRetention bounds the dead-letter stream. Exact is for MaxLen only:
	// an exact MINID can leave a stream that had deletions, as requeueing makes
	// them, unreadable for Redis at its next start. Defaults to no bound.
	DeadLetterRetention Retention

	// MaxPayload is the largest entry, in bytes of all its fields, that is
	// decoded; a larger one is treated as undecodable. Defaults to
	// DefaultMaxPayload; UnlimitedPayload turns it off.
	MaxPayload int

	// OnEvent is told what happens to the subscriptions: in a group by one goroutine
	// per subscription, one event after the other, so that one that takes its time
	// holds up nothing until 1,000 events wait; without a group by those who read and
	// hand over, who wait for it. It must not call Close (start a goroutine for
	// that). A panic in it is recovered.
	OnEvent func(Event)

	// OnReadClient is given every client that is opened for blocking reads before
	// it is used, so that hooks for tracing or metrics can be added.
	OnReadClient func(*redis.Client)

	// Tuning has what few need to change.
	Tuning Tuning

	// onDemand is for readers that may hold MaxInFlight messages but usually ask
	// for one at a time: free slots alone are no reason to take entries from peers.
	onDemand bool

	// caller is Client as it was given.
	caller redis.UniversalClient
}

// Tuning has the less common settings of a [SubscriberConfig].
type Tuning struct {
	// MinIdle is how long an entry must have been left alone before another
	// consumer may claim it, at least 30 ms. Every consumer of a group must use
	// the same. Held entries are renewed every third of it, so handlers may take
	// any time. Lower means faster recovery from a crash, but a process or a
	// network that stalls for longer loses its messages to others, which handle
	// them a second time. Defaults to DefaultMinIdle. (XAUTOCLAIM min-idle-time)
	MinIdle time.Duration

	// ClaimInterval is the time between two looks for entries of dead consumers,
	// at least 1 ms, with 10 % jitter. Lower means that what the dead have left behind
	// is found sooner, and costs a command each time. Defaults to DefaultClaimInterval.
	// (XAUTOCLAIM)
	ClaimInterval time.Duration

	// BlockTime is how long one read waits in Redis for entries, at least 1 ms.
	// A third of MinIdle is used when that is less. It decides how soon a
	// half-open connection is noticed, not how soon messages arrive. Defaults to
	// DefaultBlockTime. (XREADGROUP BLOCK)
	BlockTime time.Duration

	// DrainTimeout is how long Close, or the end of the Subscribe context, waits
	// for handlers, at least 1 ms. Defaults to DefaultDrainTimeout.
	DrainTimeout time.Duration

	// ConsumerTimeout is after what idle time, at least 1 ms, a consumer without
	// pending entries is removed from the group, whoever made it. Removing one that is alive does
	// no harm. Defaults to DefaultConsumerTimeout. (XGROUP DELCONSUMER)
	ConsumerTimeout time.Duration

	// Prefetch is how many entries may wait in the process beyond those in
	// flight, at most 100,000. Within this bound it adapts to what the handlers
	// finish in about 100 ms. Defaults to DefaultPrefetch; NoPrefetch turns it
	// off. (XREADGROUP COUNT)
	Prefetch int

	// PrefetchBytes bounds the same in bytes. Entries are read whole, so one
	// entry may exceed it. Defaults to DefaultPrefetchBytes.
	PrefetchBytes int
}

// Backoff is a growing delay: Min, Min*Factor, ... up to Max, each shifted at
// random by up to Jitter of itself.
type Backoff struct {
	Min    time.Duration // first delay, above 0. Defaults to DefaultBackoffMin
	Max    time.Duration // greatest delay. Defaults to DefaultBackoffMax, or Min if that is more
	Factor float64       // growth per attempt, at least 1. Defaults to DefaultBackoffFactor
	Jitter float64       // share of the delay, 0 to 1. Defaults to DefaultBackoffJitter; NoJitter turns it off
}

// Retention bounds a stream while it is appended to. At most one of MaxLen and
// MaxAge can be set (XADD takes one of MAXLEN and MINID). Entries are removed
// whether or not every group has read them; a group that loses entries is told
// by EventTrimmed. The zero value keeps everything.
type Retention struct {
	// MaxLen is the number of entries to keep, above 0. (XADD MAXLEN)
	MaxLen int64
	// MaxAge is the age of entries to keep, at least 1 ms, by the publisher's
	// clock. (XADD MINID)
	MaxAge time.Duration
	// Exact trims to the exact bound instead of whole nodes of the stream (about
	// 100 entries by default), at a cost per append. (= instead of ~)
	Exact bool
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

// withDefaults returns a copy in which zeros are replaced.
func (c SubscriberConfig) withDefaults() SubscriberConfig {
	c.caller, c.Client = c.Client, bounded(c.Client)
	if c.Unmarshaler == nil {
		c.Unmarshaler = WatermillMarshaler{}
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
	c.validateRest(&v)
	return v.err()
}

// validateRest validates everything but Client.
func (c SubscriberConfig) validateRest(v *validation) {
	v.check(c.StartFrom.validate(), "StartFrom")
	v.intRange("MaxInFlight", c.MaxInFlight, 0, maxInFlightLimit, "")
	v.intRange("MaxDeliveries", c.MaxDeliveries, UnlimitedDeliveries, 1<<30, "UnlimitedDeliveries")
	v.intRange("MaxPayload", c.MaxPayload, UnlimitedPayload, 1<<40, "UnlimitedPayload")
	v.check(c.NackBackoff.validate(), "NackBackoff")
	v.check(c.DeadLetterRetention.validate(), "DeadLetterRetention")
	if c.DeadLetterRetention.Exact && c.DeadLetterRetention.MaxAge > 0 {
		v.addf("DeadLetterRetention", "Exact is for MaxLen, not for MaxAge")
	}
	v.duration("HandlerTimeout", c.HandlerTimeout, time.Millisecond)
	t := c.Tuning
	v.duration("Tuning.MinIdle", t.MinIdle, minMinIdle)
	v.duration("Tuning.ClaimInterval", t.ClaimInterval, time.Millisecond)
	v.duration("Tuning.BlockTime", t.BlockTime, minBlockTime)
	v.duration("Tuning.DrainTimeout", t.DrainTimeout, time.Millisecond)
	v.duration("Tuning.ConsumerTimeout", t.ConsumerTimeout, time.Millisecond)
	v.intRange("Tuning.Prefetch", t.Prefetch, NoPrefetch, prefetchLimit, "NoPrefetch")
	v.intRange("Tuning.PrefetchBytes", t.PrefetchBytes, 0, 1<<40, "")
}

// withDefaults returns a copy in which zeros are replaced.
func (b Backoff) withDefaults() Backoff {
	b.Min = orDefault(b.Min, DefaultBackoffMin)
	b.Max = orDefault(b.Max, max(DefaultBackoffMax, b.Min))
	b.Factor = orDefault(b.Factor, DefaultBackoffFactor)
	b.Jitter = max(0, orDefault(b.Jitter, DefaultBackoffJitter))
	return b
}

func (b Backoff) validate() error {
	d := b.withDefaults()
	switch {
	case b.Min < 0 || b.Min > maxDuration:
		return fmt.Errorf("Min must be above 0 and at most %v, got %v", maxDuration, b.Min)
	case b.Max < 0 || b.Max > maxDuration:
		return fmt.Errorf("Max must be above 0 and at most %v, got %v", maxDuration, b.Max)
	case d.Max < d.Min:
		return fmt.Errorf("Max (%v) must not be less than Min (%v)", d.Max, d.Min)
	case !(d.Factor >= 1 && d.Factor <= 100):
		return fmt.Errorf("Factor must be 1 to 100, got %v", b.Factor)
	case !(b.Jitter >= NoJitter && b.Jitter <= 1):
		return fmt.Errorf("Jitter must be 0 to 1, or NoJitter, got %v", b.Jitter)
	}
	return nil
}

func (r Retention) validate() error {
	switch {
	case r.MaxLen < 0:
		return fmt.Errorf("MaxLen must be above 0, or 0 for no bound, got %d", r.MaxLen)
	case r.MaxAge < 0 || r.MaxAge > 100*maxDuration || r.MaxAge > 0 && r.MaxAge < time.Millisecond:
		return fmt.Errorf("MaxAge must be at least 1ms, or 0 for no bound, got %v", r.MaxAge)
	case r.MaxLen > 0 && r.MaxAge > 0:
		return errors.New("MaxLen and MaxAge cannot be set together: XADD takes one of MAXLEN and MINID")
	case r.Exact && r.MaxLen == 0 && r.MaxAge == 0:
		return errors.New("Exact needs MaxLen or MaxAge")
	}
	return nil
}

// validation collects the problems of one configuration.
type validation struct {
	prefix string
	errs   []error
}

func (v *validation) check(err error, field string) {
	if err != nil {
		v.errs = append(v.errs, fmt.Errorf("redischannels: %s.%s: %w: %w", v.prefix, field, ErrInvalidConfig, err))
	}
}

func (v *validation) addf(field, format string, args ...any) {
	v.check(fmt.Errorf(format, args...), field)
}

func (v *validation) intRange(field string, n, low, high int, off string) {
	switch {
	case n >= low && n <= high:
	case off != "":
		v.addf(field, "must be 1 to %d, 0 for the default, or %s, got %d", high, off, n)
	default:
		v.addf(field, "must be 1 to %d, or 0 for the default, got %d", high, n)
	}
}

func (v *validation) duration(field string, d, least time.Duration) {
	if d != 0 && (d < least || d > maxDuration) {
		v.addf(field, "must be %v to %v, or 0 for the default, got %v", least, maxDuration, d)
	}
}

func (v *validation) publishTimeout(field string, d time.Duration) {
	if d != 0 && d != NoPublishTimeout && (d < time.Millisecond || d > maxDuration) {
		v.addf(field, "must be %v to %v, 0 for the default, or NoPublishTimeout, got %v", time.Millisecond, maxDuration, d)
	}
}

func (v *validation) client(c redis.UniversalClient) {
	if err := supportedClient(c); err != nil {
		v.check(err, "Client")
	}
}

func (v *validation) err() error { return errors.Join(v.errs...) }

// supportedClient tells whether blocking reads and per-node commands can be made
// for this client.
func supportedClient(c redis.UniversalClient) error {
	switch c := c.(type) {
	case nil:
		return errors.New("must not be nil: pass a *redis.Client or a *redis.ClusterClient")
	case *redis.Client:
		if c == nil {
			return errors.New("must not be a nil *redis.Client")
		}
	case *redis.ClusterClient:
		if c == nil {
			return errors.New("must not be a nil *redis.ClusterClient")
		}
	default:
		return fmt.Errorf("%w: %T; pass a *redis.Client (also from NewFailoverClient) or a *redis.ClusterClient", ErrUnsupportedClient, c)
	}
	return nil
}

func orDefault[T int | int64 | float64 | time.Duration](v, def T) T {
	if v == 0 {
		return def
	}
	return v
}

// PublisherConfig configures [NewPublisher]. Only Client is required.
type PublisherConfig struct {
	// Client is used for all commands and is never closed. *redis.Client, also
	// from redis.NewFailoverClient, and *redis.ClusterClient are supported.
	Client redis.UniversalClient

	// Marshaler turns messages into entries. Defaults to WatermillMarshaler.
	Marshaler Marshaler

	// Retention bounds the streams that are published to. Defaults to no bound.
	Retention Retention

	// TopicRetention overrides Retention for single topics. The map is copied.
	TopicRetention map[string]Retention

	// Durability asks replicas to confirm before Publish returns. Defaults to
	// the master alone.
	Durability Durability

	// MaxPayload is the largest message, in bytes of all its fields, that is
	// sent. Defaults to DefaultMaxPayload; UnlimitedPayload turns it off.
	MaxPayload int

	// Timeout bounds one Publish or Append, with its retries of what was not
	// sent, at least 1 ms. Defaults to DefaultPublishTimeout; NoPublishTimeout turns it off.
	Timeout time.Duration
}

// Durability is how many replicas must have confirmed a message before Publish
// reports it as published. It narrows the window in which a failover loses
// confirmed messages but does not close it: Redis promotes the replica that it
// likes best, not the one that has the most. (WAIT)
type Durability struct {
	Replicas int           // number of replicas, 0 means none is waited for
	Timeout  time.Duration // greatest wait, at least 1 ms. Defaults to half of PublisherConfig.Timeout, or of its default if that is off
}

// withDefaults returns a copy in which zeros are replaced and the map is cloned.
func (c PublisherConfig) withDefaults() PublisherConfig {
	if c.Marshaler == nil {
		c.Marshaler = WatermillMarshaler{}
	}
	c.TopicRetention = maps.Clone(c.TopicRetention)
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
	c.validateRest(&v)
	return v.err()
}

// validateRest validates everything but Client.
func (c PublisherConfig) validateRest(v *validation) {
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

// validateTopic reports a topic that no Redis key can or should be made of.
func validateTopic(topic string) error {
	if topic == "" {
		return invalidArgument("topic", errEmpty)
	}
	return nil
}
