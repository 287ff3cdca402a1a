package redischannels

import (
	"time"

	"github.com/redis/go-redis/v9"
)

// Defaults of the Pub/Sub configurations.
const (
	DefaultPubSubBuffer     = 1024
	DefaultBufferBytes      = 8 << 20
	DefaultHealthInterval   = 5 * time.Second
	DefaultSubscribeTimeout = 10 * time.Second
)

// Limits of the Pub/Sub configurations.
const (
	minHealthInterval = 20 * time.Millisecond
	bufferLimit       = 10_000_000
	workersLimit      = 10_000
)

// DropPolicy selects the message that a full buffer drops.
type DropPolicy uint8

// The drop policies.
const (
	// DropOldest drops the oldest message: handlers receive the newest ones.
	DropOldest DropPolicy = iota
	// DropNewest drops the arriving message: handlers receive the oldest ones.
	DropNewest
)

var dropPolicyNames = [...]string{DropOldest: "oldest", DropNewest: "newest"}

// String returns the policy in one word.
func (p DropPolicy) String() string { return enumName(dropPolicyNames[:], "drop policy", p) }

// MarshalText returns the same, for JSON and logs.
func (p DropPolicy) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText sets the value of that name. The error wraps [ErrInvalidArgument].
func (p *DropPolicy) UnmarshalText(text []byte) error {
	return parseEnum(dropPolicyNames[:], "drop policy", text, p)
}

// PubSubPublisherConfig configures [NewPubSubPublisher], and as
// PubSubChannelConfig.Publisher the writing side of a channel. Only Client is required.
type PubSubPublisherConfig struct {
	// Client is used for all commands and is never closed. *redis.Client, also
	// from redis.NewFailoverClient, and *redis.ClusterClient are supported. A channel
	// uses the client of its hub.
	Client redis.UniversalClient

	// Marshaler encodes messages as bytes. Defaults to EnvelopeMarshaler.
	Marshaler PubSubMarshaler

	// Sharded publishes to shard channels, which only subscribers with Sharded receive. In a
	// cluster such a message is sent to one shard instead of to every node. Redis 7 or newer.
	// (SPUBLISH instead of PUBLISH)
	Sharded bool

	// ChannelPrefix is prepended to each topic, which gives the name of the channel. All
	// databases of a server share their channels; a prefix separates applications. Subscribers
	// need the same prefix. Defaults to none. (PUBLISH channel)
	ChannelPrefix string

	// MaxPayload is the maximum size of a message, in bytes on the wire. Defaults to
	// DefaultMaxPayload; UnlimitedPayload turns it off.
	MaxPayload int

	// Timeout bounds one Publish or Send, at least 1 ms. Too low makes publishing fail in short
	// outages; too high blocks callers in long ones. Defaults to DefaultPublishTimeout;
	// NoPublishTimeout turns it off.
	Timeout time.Duration

	// Instrumentation observes the messages. A channel uses the one of its hub. Defaults to none.
	Instrumentation Instrumentation
}

func (c PubSubPublisherConfig) withDefaults() PubSubPublisherConfig {
	if c.Marshaler == nil {
		c.Marshaler = EnvelopeMarshaler{}
	}
	c.MaxPayload = orDefault(c.MaxPayload, DefaultMaxPayload)
	c.Timeout = orDefault(c.Timeout, DefaultPublishTimeout)
	return c
}

// Validate reports every problem of the configuration in one joined error. Each
// names its field and wraps [ErrInvalidConfig]. Zero values stand for defaults
// and are valid, except Client.
func (c PubSubPublisherConfig) Validate() error {
	v := validation{prefix: "PubSubPublisherConfig"}
	v.client(c.Client)
	c.withDefaults().validate(&v)
	return v.err()
}

// validate checks everything but Client, with the defaults filled in.
func (c PubSubPublisherConfig) validate(v *validation) {
	v.intRange("MaxPayload", c.MaxPayload, UnlimitedPayload, 1<<40, "UnlimitedPayload")
	v.publishTimeout("Timeout", c.Timeout)
}

// PubSubSubscriberConfig configures [NewPubSubSubscriber], and as
// PubSubChannelConfig.Subscriber the reading side of a channel. Only Client is required.
type PubSubSubscriberConfig struct {
	// Client has the options for the connections of the subscriber (hooks are not copied; see
	// OnReadClient); its pool is not used. It is never closed. *redis.Client, also from
	// redis.NewFailoverClient, and *redis.ClusterClient are supported. A channel uses the client
	// of its hub.
	Client redis.UniversalClient

	// Unmarshaler decodes messages. Defaults to EnvelopeMarshaler.
	Unmarshaler PubSubUnmarshaler

	// Sharded subscribes to shard channels, to which publishers with Sharded publish. Redis 7 or
	// newer. (SSUBSCRIBE instead of SUBSCRIBE)
	Sharded bool

	// Patterns makes topics glob patterns: `orders.*` receives messages published to orders.eu;
	// [TopicFromContext] returns the channel. The special characters are `*`, `?`, `[` and `\`;
	// topics without them are channels. It cannot be combined with Sharded, for which Redis has
	// no patterns. (PSUBSCRIBE)
	Patterns bool

	// ChannelPrefix is prepended to each topic, which gives the name of the channel. Publishers
	// need the same prefix. Defaults to none.
	ChannelPrefix string

	// MaxInFlight is the maximum number of messages of one subscription that are delivered and
	// not yet acknowledged, 1 to 10,000. 1 keeps the order of arrival; a nacked message then
	// blocks those behind it. Each message in flight costs a goroutine. Defaults to
	// DefaultMaxInFlight.
	MaxInFlight int

	// Buffer is the maximum number of messages of one subscription that wait for its handler, 1
	// to 10,000,000. Further messages are dropped as Drop selects, counted and reported. Lower
	// loses messages in shorter bursts; higher lets a slow handler fall further behind. Memory is
	// allocated only when it is needed. Defaults to DefaultPubSubBuffer.
	Buffer int

	// BufferBytes bounds the same in bytes of payloads and channel names. A single message that
	// exceeds it is kept if no other message waits. Defaults to DefaultBufferBytes.
	BufferBytes int

	// Drop selects the message that a full buffer drops. Defaults to DropOldest.
	Drop DropPolicy

	// MaxDeliveries is the number of deliveries to a handler after which a message is skipped.
	// Nothing is stored: redeliveries take place only in this process. Defaults to
	// DefaultMaxDeliveries; UnlimitedDeliveries turns it off.
	MaxDeliveries int

	// NackBackoff is the delay between a Nack and the redelivery.
	NackBackoff Backoff

	// MaxPayload is the maximum size of a message, in bytes on the wire, that is kept and
	// decoded. A larger message is treated as undecodable and is not kept in memory. Defaults to
	// DefaultMaxPayload; UnlimitedPayload turns it off.
	MaxPayload int

	// HealthInterval is the time within which a half-open connection is detected, at least 20 ms.
	// If Redis has sent nothing for half of it, the subscriber sends a PING, whose reply must
	// arrive within the other half. Lower detects failures sooner and costs more commands. If it
	// is too low, a busy server or network is mistaken for a failed one, and the messages until
	// the reconnect are lost. Defaults to DefaultHealthInterval. (PING)
	HealthInterval time.Duration

	// SubscribeTimeout bounds the wait of Subscribe for the confirmation of Redis, at
	// least 1 ms. Defaults to DefaultSubscribeTimeout.
	SubscribeTimeout time.Duration

	// DrainTimeout is how long Close, or the end of the Subscribe context, waits for
	// handlers, at least 1 ms. Defaults to DefaultDrainTimeout.
	DrainTimeout time.Duration

	// OnEvent receives the events of the subscriptions from one goroutine, one event after the
	// other. It must not call Close (start a goroutine for that). A panic in it is recovered.
	// While it does not return, up to 1,000 events wait; beyond that, events of one kind and
	// topic are merged into one, with their number in Count and the sum of their Durations. Close
	// waits at most 5 s for it; later events are only logged. Defaults to none: events are only
	// logged. A channel uses the one of its hub.
	OnEvent func(Event)

	// Instrumentation observes the deliveries of messages. Defaults to none. A channel uses the one
	// of its hub.
	Instrumentation Instrumentation

	// OnReadClient receives every client that the subscriber opens, before its first use, so that
	// hooks for tracing or metrics can be added. The hooks see the dialing of the connection, not
	// the commands on it. Defaults to none. A channel uses the one of its hub.
	OnReadClient func(*redis.Client)
}

func (c PubSubSubscriberConfig) withDefaults() PubSubSubscriberConfig {
	if c.Unmarshaler == nil {
		c.Unmarshaler = EnvelopeMarshaler{}
	}
	c.MaxInFlight = orDefault(c.MaxInFlight, DefaultMaxInFlight)
	c.Buffer = orDefault(c.Buffer, DefaultPubSubBuffer)
	c.BufferBytes = orDefault(c.BufferBytes, DefaultBufferBytes)
	c.MaxDeliveries = orDefault(c.MaxDeliveries, DefaultMaxDeliveries)
	c.NackBackoff = c.NackBackoff.withDefaults()
	c.MaxPayload = orDefault(c.MaxPayload, DefaultMaxPayload)
	c.HealthInterval = orDefault(c.HealthInterval, DefaultHealthInterval)
	c.SubscribeTimeout = orDefault(c.SubscribeTimeout, DefaultSubscribeTimeout)
	c.DrainTimeout = orDefault(c.DrainTimeout, DefaultDrainTimeout)
	return c
}

// Validate reports every problem of the configuration in one joined error. Each
// names its field and wraps [ErrInvalidConfig]. Zero values stand for defaults
// and are valid, except Client.
func (c PubSubSubscriberConfig) Validate() error {
	v := validation{prefix: "PubSubSubscriberConfig"}
	v.client(c.Client)
	c.withDefaults().validate(&v)
	return v.err()
}

// validate checks everything but Client, with the defaults filled in.
func (c PubSubSubscriberConfig) validate(v *validation) {
	if c.Patterns && c.Sharded {
		v.addf("Patterns", "cannot be set together with Sharded: Redis has no patterns for shard channels")
	}
	v.intRange("MaxInFlight", c.MaxInFlight, 1, workersLimit, "")
	v.intRange("Buffer", c.Buffer, 1, bufferLimit, "")
	v.intRange("BufferBytes", c.BufferBytes, 1, 1<<40, "")
	if c.Drop > DropNewest {
		v.addf("Drop", "must be DropOldest or DropNewest, got %v", c.Drop)
	}
	v.intRange("MaxDeliveries", c.MaxDeliveries, UnlimitedDeliveries, 1_000_000_000, "UnlimitedDeliveries")
	v.check(c.NackBackoff.validate(), "NackBackoff")
	v.intRange("MaxPayload", c.MaxPayload, UnlimitedPayload, 1<<40, "UnlimitedPayload")
	v.duration("HealthInterval", c.HealthInterval, minHealthInterval)
	v.duration("SubscribeTimeout", c.SubscribeTimeout, time.Millisecond)
	v.duration("DrainTimeout", c.DrainTimeout, time.Millisecond)
}
