package inspect

import (
	"errors"
	"fmt"
	"os"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/bridge"
	"github.com/flaminco/redischannels/internal/control"
	"github.com/flaminco/redischannels/internal/keys"
	"github.com/flaminco/redischannels/internal/redisconn"
)

// ErrNoGroup means that the topic has no such consumer group. The error has the names of those that it has.
var ErrNoGroup = errors.New("no such consumer group")

// Config configures [New]. Client is required.
type Config struct {
	// Client is used for all commands and is never closed. *redis.Client, also
	// from redis.NewFailoverClient, and *redis.ClusterClient are supported.
	Client redis.UniversalClient

	// SideKeys is that of redischannels.SubscriberConfig, and must be the same.
	SideKeys func(topic string) string

	// DeadLetterTopic is that of redischannels.DeadLettersConfig, and must be the same.
	DeadLetterTopic func(topic string) string

	// Actor is the name in the audit stream: of a person or a service. At most 256 bytes.
	// Defaults to the host name.
	Actor string
}

// maxActor is the greatest length of Config.Actor.
const maxActor = 256

// Validate reports every problem of the configuration in one joined error. Each names its field and
// wraps [redischannels.ErrInvalidConfig].
func (c Config) Validate() error {
	var errs []error
	check := func(field string, problem error) {
		if problem != nil {
			errs = append(errs, fmt.Errorf("redischannels/inspect: Config.%s: %w: %w", field, redischannels.ErrInvalidConfig, problem))
		}
	}
	check("Client", bridge.CheckClient(c.Client))
	if len(c.Actor) > maxActor {
		check("Actor", fmt.Errorf("must have at most %d bytes, got %d", maxActor, len(c.Actor)))
	}
	return errors.Join(errs...)
}

// Inspector reads where topics and their groups stand, and acts on them. It is safe for concurrent use and need
// not be closed. Its methods block until Redis has answered or their context ends. After an error by which it is
// not known whether Redis has executed the command, calling again is right: nothing is done twice.
//
// Reads change nothing. Those that return many results are loops, which read a page when they need it: what
// changes meanwhile may or may not be in them.
type Inspector struct {
	config Config
	logger watermill.LoggerAdapter
	dead   *redischannels.DeadLetters
}

// New returns an inspector. It does not talk to Redis. A nil logger is slog.Default() for errors;
// another one gets a line for each action as well. The error wraps [redischannels.ErrInvalidConfig], one for
// each wrong field.
func New(config Config, logger watermill.LoggerAdapter) (*Inspector, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	if config.Actor == "" {
		config.Actor, _ = os.Hostname()
	}
	dead, err := redischannels.NewDeadLetters(redischannels.DeadLettersConfig{
		Client: config.Client, SideKeys: config.SideKeys, DeadLetterTopic: config.DeadLetterTopic,
	}, logger)
	if err != nil {
		return nil, err
	}
	return &Inspector{config: config, logger: bridge.Logger(logger), dead: dead}, nil
}

var errEmpty = errors.New("must not be empty")

// sideKeys returns the keys of a topic.
func (i *Inspector) sideKeys(topic string) (keys.Topic, error) {
	if topic == "" {
		return keys.Topic{}, invalidArgument("topic", errEmpty)
	}
	return bridge.SideKeys(topic, i.config.SideKeys, i.config.Client)
}

// deadTopic returns the dead-letter stream of a topic.
func (i *Inspector) deadTopic(of keys.Topic) (string, error) {
	return bridge.DeadLetterTopic(of.Name, i.config.DeadLetterTopic, i.config.SideKeys, i.config.Client)
}

// group returns a group of a topic.
func (i *Inspector) group(topic, group string) (control.Group, error) {
	of, err := i.sideKeys(topic)
	if err != nil {
		return control.Group{}, err
	}
	if group == "" {
		return control.Group{}, invalidArgument("group", errEmpty)
	}
	return control.Group{Topic: of, Name: group, Actor: i.config.Actor}, nil
}

// readError returns an error with what has failed, nil for none. A missing stream is [ErrNoTopic], of a group
// [ErrNoGroup].
func readError(action, topic, group string, err error) error {
	if err == nil {
		return nil
	}
	missing := ErrNoTopic
	switch {
	case group != "":
		action, missing = fmt.Sprintf("%s group %q of topic %q", action, group, topic), ErrNoGroup
	case topic != "":
		action = fmt.Sprintf("%s topic %q", action, topic)
	}
	if redisconn.Classify(err) == redisconn.KindNoGroup {
		err = fmt.Errorf("%w: %w", missing, err)
	} else {
		err = bridge.RedisError(err)
	}
	return fmt.Errorf("redischannels/inspect: %s: %w", action, err)
}

// act logs an action that was done, or returns its error with its name.
func (i *Inspector) act(action string, g control.Group, err error, fields watermill.LogFields) error {
	if err != nil {
		return readError(action, g.Topic.Name, g.Name, err)
	}
	i.logger.Info("Operator: "+action, fields.Add(watermill.LogFields{"topic": g.Topic.Name, "consumer_group": g.Name, "actor": g.Actor}))
	return nil
}

func invalidArgument(name string, problem error) error {
	return fmt.Errorf("redischannels/inspect: %s: %w: %w", name, redischannels.ErrInvalidArgument, problem)
}
