package redischannels

import (
	"fmt"
	"maps"
	"time"

	"github.com/redis/go-redis/v9"
)

// PublisherConfig configures [NewPublisher], and as StreamChannelConfig.Publisher the
// writing side of a channel. Only Client is required.
type PublisherConfig struct {
	// Client is used for all commands and is never closed. *redis.Client, also
	// from redis.NewFailoverClient, and *redis.ClusterClient are supported. A channel
	// uses the client of its hub.
	Client redis.UniversalClient

	// Marshaler turns messages into entries. Defaults to WatermillMarshaler.
	Marshaler Marshaler

	// Retention bounds the streams that are published to. Defaults to no bound.
	Retention Retention

	// TopicRetention overrides Retention for single topics. The map is copied.
	// Defaults to none.
	TopicRetention map[string]Retention

	// SideKeys returns what the names of a topic's side keys begin with, which delayed messages
	// need (see docs/wire.md). It must return the same in every program that uses the topic, and
	// in Redis Cluster a name with a hash tag of the topic's slot. Defaults to the topic where it
	// has a hash tag and `{topic}` otherwise; for a topic with a `}` and no hash tag there is no
	// default.
	SideKeys func(topic string) string

	// Durability asks replicas to confirm before Publish returns. Defaults to
	// the master alone.
	Durability Durability

	// MaxPayload is the largest message, in bytes of all its fields, that is
	// sent. Defaults to DefaultMaxPayload; UnlimitedPayload turns it off.
	MaxPayload int

	// Timeout bounds one Publish or Append, with its retries of what was not
	// sent, at least 1 ms. Too low makes publishing fail in short outages that it
	// would wait out; too high holds callers up in long ones. Defaults to
	// DefaultPublishTimeout; NoPublishTimeout turns it off.
	Timeout time.Duration
}

// Durability is how many replicas must have confirmed a message before Publish
// reports it as published. It narrows the window in which a failover loses
// confirmed messages but does not close it: Redis promotes the replica that it
// likes best, not the one that has the most. (WAIT)
type Durability struct {
	Replicas int           // number of replicas, up to 1,000. 0 means none is waited for
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
