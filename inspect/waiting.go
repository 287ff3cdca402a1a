package inspect

import (
	"context"
	"iter"
	"strconv"
	"time"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/delayed"
	"github.com/flaminco/redischannels/internal/stream"
	"github.com/flaminco/redischannels/schedule"
)

// Delayed yields the delayed messages of a topic in the order in which they are due: see
// [redischannels.DelayedMessages.List]. The ticks of schedules are among them.
func (i *Inspector) Delayed(ctx context.Context, topic string) iter.Seq2[redischannels.DelayedMessage, error] {
	return func(yield func(redischannels.DelayedMessage, error) bool) {
		messages, err := redischannels.NewDelayedMessages(redischannels.DelayedMessagesConfig{Client: i.config.Client, SideKeys: i.config.SideKeys}, i.logger)
		if err != nil {
			yield(redischannels.DelayedMessage{}, err)
			return
		}
		messages.List(ctx, topic)(yield)
	}
}

// DeferredMessage is a message whose retry waits in Redis.
type DeferredMessage struct {
	ID      string    // of the stored retry
	Due     time.Time // when it returns to the group, by the clock of the Redis server
	EntryID string    // of the original in the topic
	Reason  string    // why it was deferred
	Count   int       // deliveries that were counted
	Fields  []redischannels.Field
	// Err is not nil where the stored entry cannot be read: it becomes a dead letter when it is due.
	Err error
}

// Deferred yields the deferred messages of a group in the order in which they are due. They are read in
// pages of up to 100 entries and 256 KiB; what is stored meanwhile, or returned, may or may not be yielded. An
// error ends the loop. (ZRANGE, ZRANK, ZCOUNT, HGET)
func (i *Inspector) Deferred(ctx context.Context, topic, group string) iter.Seq2[DeferredMessage, error] {
	return func(yield func(DeferredMessage, error) bool) {
		of, err := i.group(topic, group)
		if err != nil {
			yield(DeferredMessage{}, err)
			return
		}
		target := delayed.Target{Topic: of.Topic, Group: group}
		for last := (*delayed.Waiting)(nil); ; {
			page, err := delayed.List(ctx, i.config.Client, target, last)
			if err != nil {
				yield(DeferredMessage{}, readError("deferred messages", topic, group, err))
				return
			}
			for n := range page {
				if !yield(newDeferred(&page[n]), nil) {
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

func newDeferred(w *delayed.Waiting) DeferredMessage {
	m := DeferredMessage{ID: w.ID, Due: w.Due.UTC()}
	values, err := delayed.Unpack(w.Entry)
	if err != nil {
		m.Err = err
		return m
	}
	if n := len(values) - 6; n > 0 && values[n] == stream.ReturnEntryIDField && values[n+2] == stream.ReturnReasonField && values[n+4] == stream.ReturnCountField {
		m.EntryID, m.Reason = values[n+1], values[n+3]
		m.Count, _ = strconv.Atoi(values[n+5])
		values = values[:n]
	}
	m.Fields = fieldsOf(values)
	return m
}

// Schedules yields the schedules of a topic in the order of their IDs: see [schedule.Schedules.List].
func (i *Inspector) Schedules(ctx context.Context, topic string) iter.Seq2[schedule.Info, error] {
	return func(yield func(schedule.Info, error) bool) {
		schedules, err := schedule.New(schedule.Config{Client: i.config.Client, Topic: topic, SideKeys: i.config.SideKeys}, i.logger)
		if err != nil {
			yield(schedule.Info{}, err)
			return
		}
		defer schedules.Close()
		schedules.List(ctx)(yield)
	}
}
