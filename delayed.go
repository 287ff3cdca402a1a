package redischannels

import (
	"context"
	"fmt"
	"iter"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/delayed"
)

// cancelChunk is how many delayed messages are canceled by one command.
const cancelChunk = 1000

// DelayedMessagesConfig configures [NewDelayedMessages]. Only Client is required.
type DelayedMessagesConfig struct {
	// Client is used for all commands and is never closed. *redis.Client, also
	// from redis.NewFailoverClient, and *redis.ClusterClient are supported.
	Client redis.UniversalClient

	// SideKeys is that of PublisherConfig.
	SideKeys func(topic string) string
}

// Validate reports every problem of the configuration in one joined error. Each
// names its field and wraps [ErrInvalidConfig].
func (c DelayedMessagesConfig) Validate() error {
	v := validation{prefix: "DelayedMessagesConfig"}
	v.client(c.Client)
	return v.err()
}

// DelayedMessages lists and cancels messages that are not appended to their topic yet. It is safe
// for concurrent use. It has no resources and needs no Close. All methods block until Redis has
// replied or ctx ends.
type DelayedMessages struct {
	config DelayedMessagesConfig
	logger watermill.LoggerAdapter
}

// NewDelayedMessages returns a DelayedMessages. It sends no commands to Redis. Cancellations are
// logged at Info with their number, unless logger is nil.
func NewDelayedMessages(config DelayedMessagesConfig, logger watermill.LoggerAdapter) (*DelayedMessages, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	return &DelayedMessages{config: config, logger: loggerOrDefault(logger)}, nil
}

// DelayedMessage is a message that is not appended to its topic yet.
type DelayedMessage struct {
	ID     string    // PublishResult.DelayedID
	Topic  string    // topic that it will be appended to
	Due    time.Time // by the clock of the Redis server, to the millisecond
	Fields []Field   // of its entry; a copy that the caller owns
	// Err is not nil if the stored entry cannot be decoded: it becomes a dead letter when it is
	// due.
	Err error
}

// Entry returns the message for an [Unmarshaler]. It has no ID.
func (d DelayedMessage) Entry() Entry { return Entry{Topic: d.Topic, Fields: d.Fields} }

// Message decodes the message with the Unmarshaler of the consumers, or WatermillMarshaler if it
// is nil. The error is a *[DecodeError].
func (d DelayedMessage) Message(unmarshaler Unmarshaler) (*message.Message, error) {
	return d.Entry().Message(unmarshaler)
}

// List yields the delayed messages of a topic in the order in which they are due. They are read
// in pages of up to 100 entries and 256 KiB. Messages that are stored or appended meanwhile may
// or may not be yielded. An error ends the list.
func (d *DelayedMessages) List(ctx context.Context, topic string) iter.Seq2[DelayedMessage, error] {
	return func(yield func(DelayedMessage, error) bool) {
		target, err := d.target(topic)
		if err != nil {
			yield(DelayedMessage{}, err)
			return
		}
		var last *delayed.Waiting
		for {
			page, err := delayed.List(ctx, d.config.Client, target, last)
			if err != nil {
				yield(DelayedMessage{}, delayedError("list", topic, err))
				return
			}
			for i := range page {
				if !yield(newDelayedMessage(topic, &page[i]), nil) {
					return
				}
			}
			if len(page) == 0 {
				return
			}
			last = &page[len(page)-1]
		}
	}
}

func newDelayedMessage(topic string, w *delayed.Waiting) DelayedMessage {
	m := DelayedMessage{ID: w.ID, Topic: topic, Due: w.Due}
	values, err := delayed.Unpack(w.Entry)
	if err != nil {
		m.Err = err
		return m
	}
	for i := 0; i < len(values); i += 2 {
		m.Fields = append(m.Fields, Field{Name: values[i], Value: []byte(values[i+1])})
	}
	return m
}

// Cancel deletes delayed messages, and returns the IDs of those that it deleted in time: they
// will never be appended. The others were already appended, or do not exist. After an error the
// other IDs may or may not be deleted, and a further call returns only those that this one has
// not deleted. (ZREM, HDEL)
func (d *DelayedMessages) Cancel(ctx context.Context, topic string, ids ...string) (cancelled []string, err error) {
	target, err := d.target(topic)
	if err != nil {
		return nil, err
	}
	for rest := ids; len(rest) > 0 && err == nil; {
		some := rest[:min(len(rest), cancelChunk)]
		rest = rest[len(some):]
		var done []bool
		done, err = delayed.Cancel(ctx, d.config.Client, target, some)
		for i, ok := range done {
			if ok {
				cancelled = append(cancelled, some[i])
			}
		}
	}
	d.logger.Info("Delayed messages: cancel", watermill.LogFields{"topic": topic, "asked": len(ids), "cancelled": len(cancelled)})
	return cancelled, delayedError("cancel", topic, err)
}

func (d *DelayedMessages) target(topic string) (delayed.Target, error) {
	if err := validateTopic(topic); err != nil {
		return delayed.Target{}, err
	}
	of, err := sideKeys(topic, d.config.SideKeys, d.config.Client)
	return delayed.Target{Topic: of}, err
}

func delayedError(action, topic string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("redischannels: %s delayed messages of %q: %w", action, topic, redisError(err))
}
