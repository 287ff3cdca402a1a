package redischannels

import (
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
)

// DefaultChannelMaxInFlight is the default maximum of unacknowledged deliveries of one Reader of
// a stream.
const DefaultChannelMaxInFlight = 256

// StreamFormat is a wire format in both directions: [WatermillMarshaler],
// [FlamincoMarshaler] or [FieldsMarshaler].
type StreamFormat interface {
	Marshaler
	Unmarshaler
}

// PubSubFormat is a wire format in both directions: [EnvelopeMarshaler] or
// [RawPayload].
type PubSubFormat interface {
	PubSubMarshaler
	PubSubUnmarshaler
}

// StreamChannelConfig configures [NewStreamChannel]. The zero value is a channel without a group,
// whose readers receive every value written after their first use. A zero field defaults to the
// one of HubConfig.Stream, and then to the default that is documented here.
//
// Channels of a hub whose settings are equal share a publisher, and without a group a subscriber
// with its connections. A pointer equals only itself, and a function equals nothing: pass one
// pointer to your own format to all channels. A channel with an OrderingKey and without a group
// has its own connections.
type StreamChannelConfig struct {
	// Codec makes payloads of values. Defaults to HubConfig.Codec.
	Codec Codec

	// Format is the wire format in both directions: it fills Publisher.Marshaler and
	// Subscriber.Unmarshaler, which must not be set beside it. FlamincoMarshaler shares
	// streams with the .NET library, with the codec JSON. Defaults to WatermillMarshaler.
	Format StreamFormat

	// Publisher configures writing. Its Client and SideKeys are those of the hub and must not be
	// set.
	Publisher PublisherConfig

	// Subscriber configures reading. Its Client, SideKeys, OnEvent and OnReadClient are those of
	// the hub and must not be set. MaxInFlight defaults to DefaultChannelMaxInFlight: when that
	// many deliveries of the Reader are unacknowledged, reading waits, and EventStalled is
	// reported after Tuning.BlockTime. An entry above MaxPayload is a *DecodeError of the Reader.
	Subscriber SubscriberConfig

	// MaxLag is the number of entries, above 0, that may wait for Subscriber.ConsumerGroup to
	// read them before Writer.WaitToWrite waits. It needs a group; a default of the hub applies
	// only to channels that have a group. Defaults to no bound. (XINFO GROUPS lag; before Redis
	// 7, and where it is unknown, the entries behind the group's last-delivered-id are counted by
	// XRANGE, up to the bound)
	MaxLag int64

	// MaxLen is the number of entries, above 0, that the stream may have before
	// Writer.WaitToWrite waits. It is useful only if another program trims the stream or deletes
	// entries; Publisher.Retention never waits. Defaults to no bound. (XLEN)
	MaxLen int64
}

// Validate reports every problem of the configuration in one joined error. Each names its field
// and wraps [ErrInvalidConfig]. [NewStreamChannel] checks the problems that depend on the
// defaults of a hub.
func (c StreamChannelConfig) Validate() error {
	v := validation{prefix: "StreamChannelConfig"}
	c.validatePart(&v)
	return v.err()
}

// validatePart checks a configuration that the defaults of a hub may yet complete.
func (c StreamChannelConfig) validatePart(v *validation) {
	c.validateGiven(v)
	c.withDefaults().validate(v)
}

// validateGiven checks what must not be set together, or not at all, before anything is
// filled in.
func (c StreamChannelConfig) validateGiven(v *validation) {
	v.within("Publisher", func(v *validation) {
		v.ofHub("Client", c.Publisher.Client != nil)
		v.ofHub("Instrumentation", c.Publisher.Instrumentation != nil)
		v.ofHub("SideKeys", c.Publisher.SideKeys != nil)
		v.instead("Marshaler", c.Format != nil && c.Publisher.Marshaler != nil, "Format")
	})
	v.within("Subscriber", func(v *validation) {
		v.ofHub("Client", c.Subscriber.Client != nil)
		v.ofHub("SideKeys", c.Subscriber.SideKeys != nil)
		v.ofHub("OnEvent", c.Subscriber.OnEvent != nil)
		v.ofHub("Instrumentation", c.Subscriber.Instrumentation != nil)
		v.ofHub("OnReadClient", c.Subscriber.OnReadClient != nil)
		v.instead("Unmarshaler", c.Format != nil && c.Subscriber.Unmarshaler != nil, "Format")
	})
}

// withFormat returns a copy in which Format is where it is used.
func (c StreamChannelConfig) withFormat() StreamChannelConfig {
	if c.Format != nil {
		c.Publisher.Marshaler, c.Subscriber.Unmarshaler, c.Format = c.Format, c.Format, nil
	}
	return c
}

// withDefaults returns a copy in which zeros are replaced.
func (c StreamChannelConfig) withDefaults() StreamChannelConfig {
	c = c.withFormat()
	c.Subscriber.MaxInFlight = orDefault(c.Subscriber.MaxInFlight, DefaultChannelMaxInFlight)
	c.Publisher = c.Publisher.withDefaults()
	c.Subscriber = c.Subscriber.withDefaults()
	return c
}

// validate checks single fields, with the defaults filled in.
func (c StreamChannelConfig) validate(v *validation) {
	v.within("Publisher", c.Publisher.validate)
	v.within("Subscriber", c.Subscriber.validate)
	if c.MaxLag < 0 {
		v.addf("MaxLag", "must be above 0, or 0 for no bound, got %d", c.MaxLag)
	}
	if c.MaxLen < 0 {
		v.addf("MaxLen", "must be above 0, or 0 for no bound, got %d", c.MaxLen)
	}
}

// streamConfig returns the configuration of a channel with the defaults of the hub, and
// collects its problems.
func (h *Hub) streamConfig(v *validation, config StreamChannelConfig) StreamChannelConfig {
	config.validateGiven(v)
	lag := config.MaxLag
	config = fillZeros(config, h.config.Stream).withDefaults()
	if config.Subscriber.ConsumerGroup == "" {
		config.MaxLag = lag // a default is meant for those that have a group
	}
	if config.Codec == nil {
		config.Codec = h.config.Codec
	}
	config.validate(v)
	if config.MaxLag > 0 && config.Subscriber.ConsumerGroup == "" {
		v.addf("MaxLag", "needs Subscriber.ConsumerGroup, whose lag is meant, got %d without a group", config.MaxLag)
	}
	return config
}

// PubSubChannelConfig configures [NewPubSubChannel]. The zero value works. A zero field defaults
// to the one of HubConfig.PubSub, and then to the default that is documented here. Channels of a
// hub whose settings, except Codec, are equal share a connection. Equality is that of
// [StreamChannelConfig].
type PubSubChannelConfig struct {
	// Codec makes payloads of values. Defaults to HubConfig.Codec.
	Codec Codec

	// Format is the wire format in both directions: it fills Publisher.Marshaler and
	// Subscriber.Unmarshaler, which must not be set beside it. RawPayload is for producers and
	// consumers in other languages, including the .NET library. Defaults to EnvelopeMarshaler.
	Format PubSubFormat

	// Sharded makes the channel a shard channel. It fills Publisher.Sharded and
	// Subscriber.Sharded, which must not be set. In a cluster a message goes to one shard instead
	// of to every node. Redis 7 or newer. (SPUBLISH, SSUBSCRIBE)
	Sharded bool

	// ChannelPrefix is prepended to the name, which gives the name of the Redis channel. It fills
	// Publisher.ChannelPrefix and Subscriber.ChannelPrefix, which must not be set. Defaults to
	// none.
	ChannelPrefix string

	// Publisher configures writing. Its Client is that of the hub and must not be set.
	Publisher PubSubPublisherConfig

	// Subscriber configures reading. Its Client, OnEvent and OnReadClient are those of the hub
	// and must not be set. With Patterns, a channel whose name is a pattern can only be read.
	// MaxInFlight defaults to 1; above it there is no order among deliveries.
	Subscriber PubSubSubscriberConfig
}

// Validate reports every problem of the configuration in one joined error. Each names
// its field and wraps [ErrInvalidConfig].
func (c PubSubChannelConfig) Validate() error {
	v := validation{prefix: "PubSubChannelConfig"}
	c.validatePart(&v)
	return v.err()
}

// validatePart checks a configuration that the defaults of a hub may yet complete.
func (c PubSubChannelConfig) validatePart(v *validation) {
	c.validateGiven(v)
	c.withDefaults().validate(v)
}

// validateGiven checks what must not be set together, or not at all, before anything is
// filled in.
func (c PubSubChannelConfig) validateGiven(v *validation) {
	v.within("Publisher", func(v *validation) {
		v.ofHub("Client", c.Publisher.Client != nil)
		v.ofHub("Instrumentation", c.Publisher.Instrumentation != nil)
		v.instead("Marshaler", c.Format != nil && c.Publisher.Marshaler != nil, "Format")
		v.instead("Sharded", c.Publisher.Sharded, "Sharded")
		v.instead("ChannelPrefix", c.Publisher.ChannelPrefix != "", "ChannelPrefix")
	})
	v.within("Subscriber", func(v *validation) {
		v.ofHub("Client", c.Subscriber.Client != nil)
		v.ofHub("OnEvent", c.Subscriber.OnEvent != nil)
		v.ofHub("Instrumentation", c.Subscriber.Instrumentation != nil)
		v.ofHub("OnReadClient", c.Subscriber.OnReadClient != nil)
		v.instead("Unmarshaler", c.Format != nil && c.Subscriber.Unmarshaler != nil, "Format")
		v.instead("Sharded", c.Subscriber.Sharded, "Sharded")
		v.instead("ChannelPrefix", c.Subscriber.ChannelPrefix != "", "ChannelPrefix")
	})
}

// withFormat returns a copy in which Format is where it is used.
func (c PubSubChannelConfig) withFormat() PubSubChannelConfig {
	if c.Format != nil {
		c.Publisher.Marshaler, c.Subscriber.Unmarshaler, c.Format = c.Format, c.Format, nil
	}
	return c
}

// withDefaults returns a copy in which zeros are replaced, and the settings of both directions
// are copied to each.
func (c PubSubChannelConfig) withDefaults() PubSubChannelConfig {
	c = c.withFormat()
	c.Publisher.Sharded, c.Subscriber.Sharded = c.Sharded, c.Sharded
	c.Publisher.ChannelPrefix, c.Subscriber.ChannelPrefix = c.ChannelPrefix, c.ChannelPrefix
	c.Publisher = c.Publisher.withDefaults()
	c.Subscriber = c.Subscriber.withDefaults()
	return c
}

// validate checks single fields, with the defaults filled in.
func (c PubSubChannelConfig) validate(v *validation) {
	v.within("Publisher", c.Publisher.validate)
	v.within("Subscriber", c.Subscriber.validate)
}

// pubSubConfig returns the configuration of a channel with the defaults of the hub, and
// collects its problems.
func (h *Hub) pubSubConfig(v *validation, config PubSubChannelConfig) PubSubChannelConfig {
	config.validateGiven(v)
	config = fillZeros(config, h.config.PubSub).withDefaults()
	if config.Codec == nil {
		config.Codec = h.config.Codec
	}
	config.validate(v)
	return config
}

// ChannelConfig configures [NewChannel]. The zero value works.
type ChannelConfig[T any] struct {
	// Codec makes payloads of values. Defaults to JSON.
	Codec Codec

	// Metadata returns the metadata of a value, such as a tenant or a partition key, in addition
	// to that of Writer.With. Defaults to none.
	Metadata func(v T) message.Metadata

	// DrainTimeout is how long Close waits for the subscriber to end the subscription, at least 1
	// ms. The subscriber ends it when all its messages are acknowledged or nacked. Defaults to
	// DefaultDrainTimeout.
	DrainTimeout time.Duration

	// Logger receives the log. Defaults to slog.Default() for errors; watermill.NopLogger writes
	// nothing.
	Logger watermill.LoggerAdapter
}

// Validate reports every problem of the configuration in one joined error. Each names
// its field and wraps [ErrInvalidConfig].
func (c ChannelConfig[T]) Validate() error {
	v := validation{prefix: "ChannelConfig"}
	_, err := newCoder[T](c.Codec)
	v.check(err, "Codec")
	v.duration("DrainTimeout", c.DrainTimeout, time.Millisecond)
	return v.err()
}

// ofHub reports a field of a channel that only its hub has.
func (v *validation) ofHub(field string, set bool) {
	if set {
		name := "HubConfig." + field
		if field == "Client" {
			name = "the client of the hub"
		}
		v.addf(field, "must not be set on a channel, which uses %s", name)
	}
}

// instead reports a field of one direction that must be set by the field of the channel for both.
func (v *validation) instead(field string, set bool, common string) {
	if set {
		v.addf(field, "must not be set: %s of the channel is for both directions", common)
	}
}
