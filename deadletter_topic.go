package redischannels

import (
	"errors"
	"fmt"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/keys"
	"github.com/flaminco/redischannels/internal/redisconn"
)

// DefaultDeadLetterTopic returns the stream that takes the dead letters of a
// topic: `topic:dead` for a topic with a hash tag, otherwise `{topic}:dead`. Both
// lie in the topic's hash slot, which Redis Cluster needs because the move is one
// atomic step on both streams. It is an error (ErrInvalidArgument) for a topic that
// has no valid hash tag but a `}`, since no name around it can share its slot:
// such a topic needs SubscriberConfig.DeadLetterTopic.
func DefaultDeadLetterTopic(topic string) (string, error) {
	if err := validateTopic(topic); err != nil {
		return "", err
	}
	of, err := keys.Of(topic, nil, true)
	if err != nil {
		return "", invalidArgument("topic", fmt.Errorf("must have a hash tag, or SubscriberConfig.DeadLetterTopic be set: no name for dead letters lies in the hash slot of %q", topic))
	}
	return of.Dead(), nil
}

// deadLetterTopic returns the dead-letter stream of a topic by the configured
// function, or by default, once it is known to work with the client.
func deadLetterTopic(configured func(topic string) string, topic string, client redis.UniversalClient) (string, error) {
	if configured == nil {
		return DefaultDeadLetterTopic(topic)
	}
	if err := validateTopic(topic); err != nil {
		return "", err
	}
	dead := configured(topic)
	_, cluster := client.(*redis.ClusterClient)
	return dead, checkDeadLetterTopic(topic, dead, cluster)
}

// checkDeadLetterTopic reports a name that no dead letter of the topic can be
// moved to.
func checkDeadLetterTopic(topic, dead string, cluster bool) error {
	var problem error
	switch {
	case dead == "":
		problem = errEmpty
	case dead == topic:
		// A dead letter would be delivered to the group that has just given it up.
		problem = errors.New("must not be the topic itself")
	case cluster && redisconn.Slot(topic) != redisconn.Slot(dead):
		problem = fmt.Errorf("%q lies in another hash slot than the topic, put the part that both have in common in braces", dead)
	default:
		return nil
	}
	return fmt.Errorf("redischannels: DeadLetterTopic of topic %q: %w: %w", topic, ErrInvalidConfig, problem)
}
