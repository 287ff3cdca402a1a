package redischannels

import (
	"errors"
	"reflect"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
)

// DefaultChannelMaxInFlight is how many deliveries of one Reader may be unacknowledged.
const DefaultChannelMaxInFlight = 256

// NoConsumerGroup as StreamChannelConfig.ConsumerGroup makes a channel without a group on a hub
// whose default is one.
const NoConsumerGroup = "-"

// HubConfig configures [Open] and [NewHub]: what its channels have in common. The zero
// value works.
type HubConfig struct {
	// Codec of the channels that have none of their own. Defaults to JSON.
	Codec Codec

	// Stream has the defaults of stream channels. A field that is not zero in the
	// configuration of a channel overrides the one here; those of Tuning singly.
	Stream StreamChannelConfig

	// PubSub has the defaults of Pub/Sub channels in the same way.
	PubSub PubSubChannelConfig

	// OnEvent is told what happens to all channels of the hub, as the OnEvent of
	// SubscriberConfig and PubSubSubscriberConfig are, several calls at once: it should
	// return soon and must not close anything (start a goroutine for that). A panic in
	// it is recovered.
	OnEvent func(Event)

	// OnReadClient is given every client that is opened for blocking reads before it
	// is used, so that hooks for tracing or metrics can be added.
	OnReadClient func(*redis.Client)

	// Logger is told what happens. Defaults to none.
	Logger watermill.LoggerAdapter
}

// StreamChannelConfig configures [NewStreamChannel]. The zero value is a channel
// without a group, whose readers see all that is written from their first use on. A
// zero field means what the hub's HubConfig.Stream has, and then what is said here.
type StreamChannelConfig struct {
	// Codec makes payloads of values. Defaults to HubConfig.Codec.
	Codec Codec

	// Marshaler is the wire format. Defaults to WatermillMarshaler; FlamincoMarshaler
	// shares streams with the .NET library, with the codec JSON. Channels whose settings
	// are equal (reflect.DeepEqual) share what the hub keeps until its Close. One of your
	// own that equals no other, such as a struct with a function in it, adds to that with
	// each channel: pass one pointer to it to all.
	Marshaler StreamFormat

	// ConsumerGroup is the group to read in: every value goes to one of its readers, in
	// whatever process. Empty, or NoConsumerGroup, means that every Reader sees every value.
	ConsumerGroup string

	// Consumer, StartFrom, MaxDeliveries, NackBackoff, DeadLetterTopic,
	// DeadLetterRetention and Tuning are those of [SubscriberConfig].
	Consumer            string
	StartFrom           Position
	MaxDeliveries       int
	NackBackoff         Backoff
	DeadLetterTopic     func(topic string) string
	DeadLetterRetention Retention
	Tuning              Tuning

	// MaxInFlight is how many deliveries of the Reader may be unacknowledged, 1 to
	// 100,000. When all are, reading waits, and EventStalled tells so after
	// Tuning.BlockTime. 1 keeps the order of the stream also after a Nack. Defaults to
	// DefaultChannelMaxInFlight.
	MaxInFlight int

	// Retention, Durability and PublishTimeout are those of [PublisherConfig] (there
	// Timeout).
	Retention      Retention
	Durability     Durability
	PublishTimeout time.Duration

	// MaxPayload is the greatest entry, in bytes of all its fields, that is written or
	// read. Defaults to DefaultMaxPayload; UnlimitedPayload turns it off.
	MaxPayload int

	// MaxLag is how many entries may wait for ConsumerGroup to read them before
	// Writer.WaitToWrite waits, above 0. It needs a group. Defaults to no bound.
	// (XINFO GROUPS lag; before Redis 7, and where it tells none, the entries behind
	// the group's last-delivered-id are counted by XRANGE, up to the bound)
	MaxLag int64

	// MaxLen is how many entries the stream may have before Writer.WaitToWrite waits,
	// above 0. It makes sense only with something that trims or deletes, other than
	// Retention, which never waits. Defaults to no bound. (XLEN)
	MaxLen int64
}

// StreamFormat is a wire format in both directions: [WatermillMarshaler],
// [FlamincoMarshaler] or [FieldsMarshaler].
type StreamFormat interface {
	Marshaler
	Unmarshaler
}

// PubSubChannelConfig configures [NewPubSubChannel]. The zero value works. A zero field
// means what the hub's HubConfig.PubSub has, and then what is said here.
type PubSubChannelConfig struct {
	// Codec makes payloads of values. Defaults to HubConfig.Codec.
	Codec Codec

	// Marshaler is the wire format. Defaults to EnvelopeMarshaler; RawPayload is for
	// producers and consumers of other languages, the .NET library among them. One of
	// your own that equals no other is best one pointer for all channels, as in
	// StreamChannelConfig.
	Marshaler PubSubFormat

	// MaxInFlight is how many deliveries of the Reader may be unacknowledged, 1 to
	// 10,000. Above 1 there is no order among them. Defaults to DefaultMaxInFlight.
	MaxInFlight int

	// These are those of [PubSubSubscriberConfig]. A channel whose name is a pattern
	// can only be read.
	Sharded          bool
	Patterns         bool
	ChannelPrefix    string
	Buffer           int
	BufferBytes      int
	Drop             DropPolicy
	MaxDeliveries    int
	NackBackoff      Backoff
	MaxPayload       int
	HealthInterval   time.Duration
	SubscribeTimeout time.Duration
	DrainTimeout     time.Duration

	// PublishTimeout is PubSubPublisherConfig.Timeout.
	PublishTimeout time.Duration
}

// PubSubFormat is a wire format in both directions: [EnvelopeMarshaler] or
// [RawPayload].
type PubSubFormat interface {
	PubSubMarshaler
	PubSubUnmarshaler
}

// ChannelConfig configures [NewChannel]. The zero value works.
type ChannelConfig[T any] struct {
	// Codec makes payloads of values. Defaults to JSON.
	Codec Codec

	// Metadata returns what is to go with a value, in addition to what Writer.With has
	// set, such as a tenant or a partition key. Defaults to nothing.
	Metadata func(v T) message.Metadata

	// DrainTimeout is how long Close waits for the subscriber to end the subscription,
	// which it does when all its messages are settled. Defaults to
	// DefaultDrainTimeout.
	DrainTimeout time.Duration

	// Logger is told what happens. Defaults to none.
	Logger watermill.LoggerAdapter
}

// Validate reports every problem of the configuration in one joined error. Each names
// its field and wraps [ErrInvalidConfig].
func (c HubConfig) Validate() error {
	v := validation{prefix: "HubConfig.Stream"}
	c.Stream.validate(&v, false)
	w := validation{prefix: "HubConfig.PubSub"}
	c.PubSub.validate(&w)
	return errors.Join(v.err(), w.err())
}

// Validate reports every problem of the configuration in one joined error. Each names
// its field and wraps [ErrInvalidConfig]. What depends on the defaults of a hub is
// checked by [NewStreamChannel].
func (c StreamChannelConfig) Validate() error {
	v := validation{prefix: "StreamChannelConfig"}
	c.validate(&v, false)
	return v.err()
}

// validate checks single fields, and how they fit if the configuration is whole.
func (c StreamChannelConfig) validate(v *validation, whole bool) {
	c.subscriber().validateRest(v)
	// Under the names that the fields have here, and MaxPayload once.
	writing := c.publisher()
	writing.Timeout, writing.MaxPayload = 0, 0
	writing.validateRest(v)
	v.publishTimeout("PublishTimeout", c.PublishTimeout)
	if c.MaxLag < 0 {
		v.addf("MaxLag", "must be above 0, or 0 for no bound, got %d", c.MaxLag)
	}
	if c.MaxLen < 0 {
		v.addf("MaxLen", "must be above 0, or 0 for no bound, got %d", c.MaxLen)
	}
	if whole && c.MaxLag > 0 && c.group() == "" {
		v.check(errors.New("needs a ConsumerGroup whose lag is meant"), "MaxLag")
	}
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

// Validate reports every problem of the configuration in one joined error. Each names
// its field and wraps [ErrInvalidConfig].
func (c PubSubChannelConfig) Validate() error {
	v := validation{prefix: "PubSubChannelConfig"}
	c.validate(&v)
	return v.err()
}

func (c PubSubChannelConfig) validate(v *validation) {
	c.subscriber().validateRest(v)
	v.publishTimeout("PublishTimeout", c.PublishTimeout)
}

// subscriber returns the configuration for reading, without what belongs to the hub.
func (c PubSubChannelConfig) subscriber() PubSubSubscriberConfig {
	var unmarshaler PubSubUnmarshaler = EnvelopeMarshaler{}
	if c.Marshaler != nil {
		unmarshaler = c.Marshaler
	}
	return PubSubSubscriberConfig{
		Unmarshaler:      tellingPubSubUnmarshaler{unmarshaler},
		Sharded:          c.Sharded,
		Patterns:         c.Patterns,
		ChannelPrefix:    c.ChannelPrefix,
		MaxInFlight:      c.MaxInFlight,
		Buffer:           c.Buffer,
		BufferBytes:      c.BufferBytes,
		Drop:             c.Drop,
		MaxDeliveries:    c.MaxDeliveries,
		NackBackoff:      c.NackBackoff,
		MaxPayload:       c.MaxPayload,
		HealthInterval:   c.HealthInterval,
		SubscribeTimeout: c.SubscribeTimeout,
		DrainTimeout:     c.DrainTimeout,
	}
}

// publisher returns the configuration for writing, without what belongs to the hub.
func (c PubSubChannelConfig) publisher() PubSubPublisherConfig {
	return PubSubPublisherConfig{
		Marshaler:     c.Marshaler,
		Sharded:       c.Sharded,
		ChannelPrefix: c.ChannelPrefix,
		MaxPayload:    c.MaxPayload,
		Timeout:       c.PublishTimeout,
	}
}

func (c StreamChannelConfig) group() string {
	if c.ConsumerGroup == NoConsumerGroup {
		return ""
	}
	return c.ConsumerGroup
}

// subscriber returns the configuration for reading, without what belongs to the hub.
func (c StreamChannelConfig) subscriber() SubscriberConfig {
	var unmarshaler Unmarshaler = WatermillMarshaler{}
	if c.Marshaler != nil {
		unmarshaler = c.Marshaler
	}
	return SubscriberConfig{
		Unmarshaler:         unmarshaler,
		ConsumerGroup:       c.group(),
		Consumer:            c.Consumer,
		StartFrom:           c.StartFrom,
		MaxInFlight:         orDefault(c.MaxInFlight, DefaultChannelMaxInFlight),
		MaxDeliveries:       c.MaxDeliveries,
		NackBackoff:         c.NackBackoff,
		DeadLetterTopic:     c.DeadLetterTopic,
		DeadLetterRetention: c.DeadLetterRetention,
		MaxPayload:          c.MaxPayload,
		Tuning:              c.Tuning,
		onDemand:            true,
	}
}

// publisher returns the configuration for writing, without what belongs to the hub.
func (c StreamChannelConfig) publisher() PublisherConfig {
	return PublisherConfig{
		Marshaler:  c.Marshaler,
		Retention:  c.Retention,
		Durability: c.Durability,
		MaxPayload: c.MaxPayload,
		Timeout:    c.PublishTimeout,
	}
}

// streamConfig returns the configuration of a channel with the defaults of the hub.
func (h *Hub) streamConfig(config StreamChannelConfig) StreamChannelConfig {
	lag := config.MaxLag
	config = inherit(config, h.config.Stream)
	if config.group() == "" {
		config.MaxLag = lag // a default is meant for those that have a group
	}
	if config.Codec == nil {
		config.Codec = h.config.Codec
	}
	return config
}

// pubSubConfig does the same for Pub/Sub.
func (h *Hub) pubSubConfig(config PubSubChannelConfig) PubSubChannelConfig {
	config = inherit(config, h.config.PubSub)
	if config.Codec == nil {
		config.Codec = h.config.Codec
	}
	return config
}

// inherit returns config with its zero fields taken from defaults; the fields of
// Tuning count singly. It goes over all fields, so that none can be forgotten.
func inherit[C any](config, defaults C) C {
	inheritFields(reflect.ValueOf(&config).Elem(), reflect.ValueOf(defaults))
	return config
}

func inheritFields(to, from reflect.Value) {
	for i := range to.NumField() {
		switch field := to.Field(i); {
		case field.Type() == reflect.TypeFor[Tuning]():
			inheritFields(field, from.Field(i))
		case field.IsZero():
			field.Set(from.Field(i))
		}
	}
}
