package schedule

import (
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/bridge"
)

// Config configures [New]. Client and Topic are required.
type Config struct {
	// Client is used for all commands and is never closed. *redis.Client, also
	// from redis.NewFailoverClient, and *redis.ClusterClient are supported.
	Client redis.UniversalClient

	// Topic is the topic of the messages.
	Topic string

	// Marshaler encodes messages as entries. All processes with the schedules of a topic must use
	// the same. Defaults to redischannels.WatermillMarshaler.
	Marshaler redischannels.Marshaler

	// Interval is the time between two checks of Run for schedules that other processes have put
	// or resumed, at least 100 ms. A check costs a command per 100 schedules; if Interval is too
	// high, the second tick of such a schedule is late. Defaults to
	// redischannels.DefaultClaimInterval.
	Interval time.Duration

	// SideKeys is that of redischannels.PublisherConfig.
	SideKeys func(topic string) string

	// OnEvent receives the events of Run, like that of redischannels.HousekeeperConfig:
	// EventDeadLettered for a tick that cannot be appended, EventDisconnected, EventReconnected,
	// and EventError, also for a schedule whose next tick cannot be computed. Defaults to none:
	// events are only logged.
	OnEvent func(redischannels.Event)
}

// Validate reports every problem of the configuration in one joined error. Each names its field and
// wraps [redischannels.ErrInvalidConfig].
func (c Config) Validate() error {
	var errs []error
	check := func(field string, problem error) {
		if problem != nil {
			errs = append(errs, fmt.Errorf("redischannels/schedule: Config.%s: %w: %w", field, redischannels.ErrInvalidConfig, problem))
		}
	}
	check("Client", bridge.CheckClient(c.Client))
	if c.Topic == "" {
		check("Topic", errors.New("must not be empty"))
	} else {
		_, err := bridge.SideKeys(c.Topic, c.SideKeys, c.Client)
		check("Topic", err)
	}
	if c.Interval != 0 && (c.Interval < minInterval || c.Interval > maxInterval) {
		check("Interval", fmt.Errorf("must be %v to %v, or 0 for the default, got %v", minInterval, maxInterval, c.Interval))
	}
	return errors.Join(errs...)
}

const (
	minInterval = 100 * time.Millisecond
	maxInterval = 24 * time.Hour
)

// withDefaults returns a copy in which zeros are replaced.
func (c Config) withDefaults() Config {
	if c.Marshaler == nil {
		c.Marshaler = redischannels.WatermillMarshaler{}
	}
	if c.Interval == 0 {
		c.Interval = redischannels.DefaultClaimInterval
	}
	return c
}
