package redischannels

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/delayed"
	"github.com/flaminco/redischannels/internal/housekeeper"
	"github.com/flaminco/redischannels/internal/keys"
	"github.com/flaminco/redischannels/internal/lifecycle"
	"github.com/flaminco/redischannels/internal/redisconn"
	"github.com/flaminco/redischannels/internal/retention"
)

// HousekeeperConfig configures [NewHousekeeper]. Client and Topics are required.
type HousekeeperConfig struct {
	// Client is used for all commands and is never closed. *redis.Client, also
	// from redis.NewFailoverClient, and *redis.ClusterClient are supported.
	Client redis.UniversalClient

	// Topics are the topics whose delayed messages are appended, and which TrimConsumed trims. The
	// slice is copied.
	Topics []string

	// TrimConsumed is that of Retention, for all Topics: for topics of foreign producers, and for
	// publishers that end before their messages are consumed. Defaults to none.
	TrimConsumed *TrimConsumed

	// Interval is the time between two checks of a topic without known due messages, at least 100
	// ms. A check finds messages that other processes have delayed. It costs one command per
	// topic; too high makes a message late whose process ended before it was due. Defaults to
	// DefaultClaimInterval.
	Interval time.Duration

	// SideKeys is that of PublisherConfig.
	SideKeys func(topic string) string

	// OnEvent receives the events of the topics, one at a time: EventDeadLettered for a stored
	// message that cannot be appended, EventPinned, EventDisconnected, EventReconnected, and
	// EventError. It should return soon and must not close the Housekeeper. A panic in it is
	// recovered. Defaults to none: events are only logged.
	OnEvent func(Event)
}

// Validate reports every problem of the configuration in one joined error. Each
// names its field and wraps [ErrInvalidConfig].
func (c HousekeeperConfig) Validate() error {
	v := validation{prefix: "HousekeeperConfig"}
	v.client(c.Client)
	if len(c.Topics) == 0 {
		v.check(errEmpty, "Topics")
	}
	for _, topic := range c.Topics {
		v.check(validateTopic(topic), fmt.Sprintf("Topics[%q]", topic))
		if topic != "" {
			_, err := sideKeys(topic, c.SideKeys, c.Client)
			v.check(err, fmt.Sprintf("Topics[%q]", topic))
		}
	}
	v.duration("Interval", c.Interval, 100*time.Millisecond)
	v.check(Retention{TrimConsumed: c.TrimConsumed}.validate(), "TrimConsumed")
	return v.err()
}

// Housekeeper appends delayed messages of its topics when they are due, and removes consumed
// entries if TrimConsumed is set. A topic needs one if no group subscription of this library reads
// it and its publishers may have ended: a [Publisher] appends only the messages that it has delayed
// itself, and trims only the topics that it publishes to, until it is closed. Any number of
// processes may run one for the same topics; one of them leads, and each message is appended
// once. It is safe for concurrent use.
type Housekeeper struct {
	config HousekeeperConfig
	topics []keys.Topic
	logger watermill.LoggerAdapter
	life   *lifecycle.State // calls of Run
}

// NewHousekeeper returns a Housekeeper, which does nothing before Run. With a nil logger, errors
// are written to slog.Default(); watermill.NopLogger writes nothing. The error joins one for each
// invalid field, which wraps [ErrInvalidConfig].
func NewHousekeeper(config HousekeeperConfig, logger watermill.LoggerAdapter) (*Housekeeper, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	config.Topics = slices.Clone(config.Topics)
	config.TrimConsumed = config.TrimConsumed.clone()
	config.Interval = orDefault(config.Interval, DefaultClaimInterval)
	h := &Housekeeper{config: config, logger: loggerOrDefault(logger), life: lifecycle.New(fmt.Errorf("redischannels: housekeeper: %w", ErrClosed))}
	for _, topic := range config.Topics {
		of, err := sideKeys(topic, config.SideKeys, config.Client)
		if err != nil {
			return nil, err
		}
		h.topics = append(h.topics, of)
	}
	return h, nil
}

// Run appends due messages until ctx ends, when it returns nil, or Close is called, when it
// returns [ErrClosed]. It first checks each topic once and returns a permanent error of a topic,
// such as [ErrPermission], [ErrWrongType] or [ErrTopicCollision]. Later errors are events and are
// retried. Only one call may run at a time. (EVALSHA)
func (h *Housekeeper) Run(ctx context.Context) error { return h.runBeside(ctx, nil) }

// runBeside is Run with a function that runs at the same time and may report errors as events.
// The function must return when its context ends.
func (h *Housekeeper) runBeside(ctx context.Context, beside func(ctx context.Context, report func(error))) error {
	if err := h.life.Enter(); err != nil {
		return err
	}
	defer h.life.Leave()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events := newEventQueue(func(e Event) { logKeeperEvent(h.logger, e) }, h.config.OnEvent, h.logger, false)
	handle := housekeeper.Open(h.config.Client, keeperObserver{events.Post})
	var other sync.WaitGroup
	if beside != nil {
		other.Go(func() {
			beside(ctx, func(err error) { events.Post(Event{Kind: EventError, Topic: h.topics[0].Name, Err: err}) })
		})
	}
	err := h.run(ctx, handle)
	cancel()
	other.Wait()
	events.End() // later reports do not wait for OnEvent
	err = errors.Join(err, handle.Close())
	events.Close()
	return err
}

func (h *Housekeeper) run(ctx context.Context, handle *housekeeper.Handle) error {
	for _, topic := range h.topics {
		target := delayed.Target{Topic: topic}
		err := handle.Look(ctx, target)
		switch kind := redisconn.Classify(err); {
		case err == nil || kind == redisconn.KindCanceled:
		case kind.Retryable():
			handle.Due(target, 0)
		default:
			return fmt.Errorf("redischannels: delayed messages of %q: %w", topic.Name, redisError(err))
		}
		if err := h.trim(ctx, handle, topic); err != nil {
			return err
		}
	}
	ticker := time.NewTicker(h.config.Interval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			for _, topic := range h.topics {
				handle.Due(delayed.Target{Topic: topic}, 0)
			}
		case <-ctx.Done():
			return nil
		case <-h.life.Context().Done():
			return h.life.Err()
		}
	}
}

// trim trims a topic once and makes the housekeeper go on. The error is that of a topic that can never work.
func (h *Housekeeper) trim(ctx context.Context, handle *housekeeper.Handle, topic keys.Topic) error {
	if h.config.TrimConsumed == nil {
		return nil
	}
	policy := h.config.TrimConsumed.policy()
	err := handle.TrimNow(ctx, topic, policy)
	switch kind := redisconn.Classify(err); {
	case err == nil || kind == redisconn.KindCanceled:
	case kind.Retryable():
		handle.Trim(topic, policy)
	default:
		return fmt.Errorf("redischannels: retention of %q: %w", topic.Name, redisError(err))
	}
	return nil
}

// Close ends Run and returns when it has returned, or with [ErrCloseTimeout] after 20 s. The Redis
// client stays open. It may be called more than once and at any time.
func (h *Housekeeper) Close() error { return h.life.CloseWithin(0, nil) }

// lookOnce makes the housekeeper check a topic that this process uses for the first time: a
// crashed process may have left due messages. It does not wait, and calls SideKeys in another
// goroutine.
func lookOnce(keeper *housekeeper.Handle, topic string, configured func(topic string) string, client redis.UniversalClient) {
	if !keeper.FirstUse(topic) {
		return
	}
	keeper.LookSoon(func() (delayed.Target, error) {
		of, err := sideKeys(topic, configured, client)
		return delayed.Target{Topic: of}, err
	})
}

// keeperObserver converts the reports of a housekeeper to events.
type keeperObserver struct{ report func(Event) }

// DeadLetters implements housekeeper.Observer.
func (o keeperObserver) DeadLetters(target delayed.Target, letters []delayed.Letter) {
	for _, l := range letters {
		o.report(Event{Kind: EventDeadLettered, Topic: target.Topic.Name, Group: target.Group, EntryIDs: []string{l.ID}, Err: errors.New(l.Reason)})
	}
}

// Replaced implements housekeeper.Observer.
func (o keeperObserver) Replaced(topic keys.Topic, before, policy string) {
	o.report(Event{Kind: EventError, Topic: topic.Name, Err: fmt.Errorf("retention: this program replaced the TrimConsumed that another one had set: %q by %q (milliseconds of Keep and of StaleAfter, IgnoreStale, length and name of each group)", before, policy)})
}

// Pinned implements housekeeper.Observer.
func (o keeperObserver) Pinned(topic keys.Topic, pin retention.Pin, length int64) {
	o.report(Event{Kind: EventPinned, Topic: topic.Name, Group: pin.Group, Count: int(length), Duration: pin.For, Err: pinnedError(pin, length)})
}

// Failed implements housekeeper.Observer.
func (o keeperObserver) Failed(task housekeeper.Task, target delayed.Target, err error) {
	kind := EventError
	if k := redisconn.Classify(err); k == redisconn.KindNetwork || k == redisconn.KindUnavailable {
		kind = EventDisconnected
	}
	o.report(Event{Kind: kind, Topic: target.Topic.Name, Group: target.Group, Err: fmt.Errorf("%s: %w", task, redisError(err))})
}

// Recovered implements housekeeper.Observer.
func (o keeperObserver) Recovered(_ housekeeper.Task, target delayed.Target, after time.Duration) {
	o.report(Event{Kind: EventReconnected, Topic: target.Topic.Name, Group: target.Group, Duration: after})
}

// logKeeperEvent writes an event of a housekeeper to the log.
func logKeeperEvent(logger watermill.LoggerAdapter, e Event) {
	fields := watermill.LogFields{"topic": e.Topic}
	if e.Group != "" {
		fields["consumer_group"] = e.Group
	}
	if len(e.EntryIDs) > 0 {
		fields["delayed"] = e.EntryIDs
	}
	if e.Err == nil {
		logger.Info("Housekeeper: "+e.Kind.String(), fields)
		return
	}
	logger.Error("Housekeeper: "+e.Kind.String(), e.Err, fields)
}
