package redischannels

import (
	"context"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill/components/delay"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/appender"
	"github.com/flaminco/redischannels/internal/delayed"
	"github.com/flaminco/redischannels/internal/housekeeper"
	"github.com/flaminco/redischannels/internal/keys"
	"github.com/flaminco/redischannels/internal/redisconn"
)

// sideKeys returns the side keys of a topic.
func sideKeys(topic string, configured func(topic string) string, client redis.UniversalClient) (keys.Topic, error) {
	_, cluster := client.(*redis.ClusterClient)
	of, err := keys.Of(topic, configured, cluster)
	if err != nil {
		return of, invalidArgument("topic", fmt.Errorf("%q: %w", topic, err))
	}
	return of, nil
}

// anyDelayed reports whether a message may be delayed.
func anyDelayed(msgs []*message.Message) bool {
	for _, msg := range msgs {
		if msg != nil && msg.Metadata[delay.DelayedUntilKey] != "" {
			return true
		}
	}
	return false
}

// publishPause is the maximum time between delay.Message and Publish for a message whose delay is
// used and not its time. The next second may have begun meanwhile.
const publishPause = 250 * time.Millisecond

// dueOf returns when a message is due by the metadata of Watermill's components/delay, which has
// a time in whole seconds and the delay. A message that was delayed just now is due after the
// delay, because its time may be early by up to a second. Any other message is due at the time:
// Requeuer and forwarders publish a message again after its time with the old metadata, so now
// plus the delay would be later than the time by at least the delay.
func dueOf(msg *message.Message, now time.Time) (delayed.Due, error) {
	text := msg.Metadata[delay.DelayedUntilKey]
	if text == "" {
		return delayed.Due{}, nil
	}
	until, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return delayed.Due{}, fmt.Errorf("%w: the metadata %s must be a time such as %s, got %q", ErrInvalidArgument, delay.DelayedUntilKey, time.RFC3339, text)
	}
	if d, err := time.ParseDuration(msg.Metadata[delay.DelayedForKey]); err == nil {
		fresh := time.Second + publishPause
		if d >= time.Second {
			fresh = min(fresh, d)
		}
		if end := now.Add(d); !end.Before(until) && end.Before(until.Add(fresh)) {
			return delayed.After(d), nil
		}
	}
	return delayed.At(until), nil
}

// delayedBatch contains the messages of one call, of which at least one may be delayed.
type delayedBatch struct {
	topic     keys.Topic
	retention []byte
	dues      []string
	entries   [][]byte // packed
	sizes     []int
	results   []PublishResult
}

// appendDelayed is publishDelayed with the results.
func (p *Publisher) appendDelayed(ctx context.Context, topic string, msgs []*message.Message, due delayed.Due) ([]PublishResult, error) {
	b, err := p.packAll(topic, msgs, due)
	if err != nil {
		return nil, err
	}
	err = p.publishDelayed(ctx, b)
	return b.results, err
}

// publishDelayed appends messages, or stores them until they are due. Up to 500 of them, and
// up to 4 MiB, are one step, as in [Publisher.Publish].
func (p *Publisher) publishDelayed(ctx context.Context, b *delayedBatch) error {
	var deadline time.Time
	if p.config.Timeout > 0 {
		deadline = time.Now().Add(p.config.Timeout)
	}
	failed := false
	for start := 0; start < len(b.sizes); {
		end, bytes := chunk(b.sizes, start)
		if failed {
			b.fail(start, end, appender.Result{Err: errEarlierFailed})
		} else {
			failed = !p.store(ctx, deadline, b, start, end, bytes)
		}
		start = end
	}
	if failed {
		return &PublishError{Topic: b.topic.Name, Results: b.results}
	}
	return nil
}

// packAll encodes all messages as entries, or returns an error that names the message that cannot
// be encoded. due applies to all, unless it is zero.
func (p *Publisher) packAll(topic string, msgs []*message.Message, due delayed.Due) (*delayedBatch, error) {
	of, err := sideKeys(topic, p.config.SideKeys, p.config.Client)
	if err != nil {
		return nil, err
	}
	n := len(msgs)
	b := &delayedBatch{
		topic: of, retention: []byte(delayed.Retention(p.trim(topic))),
		dues: make([]string, n), entries: make([][]byte, n), sizes: make([]int, n), results: make([]PublishResult, n),
	}
	now := time.Now()
	for i, msg := range msgs {
		b.results[i] = PublishResult{Index: i, UUID: uuidOf(msg)}
		if err := p.pack(b, i, msg, due, now); err != nil {
			return nil, refused(topic, msgs, i, err)
		}
	}
	return b, nil
}

func (p *Publisher) pack(b *delayedBatch, i int, msg *message.Message, due delayed.Due, now time.Time) (err error) {
	if due.IsZero() && msg != nil {
		if due, err = dueOf(msg, now); err != nil {
			return err
		}
	}
	entry, err := p.packed(b.topic.Name, msg, !due.IsZero())
	if err != nil {
		return err
	}
	b.dues[i], b.entries[i], b.sizes[i] = due.String(), entry, len(entry)
	return nil
}

// packed returns the packed entry of a message; stored reports whether it may be stored.
func (p *Publisher) packed(topic string, msg *message.Message, stored bool) ([]byte, error) {
	fields, size, err := p.fields(topic, msg)
	if err != nil {
		return nil, err
	}
	entry := delayed.NewEntry(len(fields), size)
	for _, f := range fields {
		entry = delayed.AppendField(entry, f.Name, f.Value)
	}
	switch {
	case len(fields) > delayed.MaxFields:
		return nil, fmt.Errorf("%w: %d fields, a delayed message, and one beside it, has up to %d", ErrTooLarge, len(fields), delayed.MaxFields)
	case stored && len(entry) > delayed.MaxBytes:
		return nil, fmt.Errorf("%w: %d bytes, a delayed message has up to %d", ErrTooLarge, len(entry), delayed.MaxBytes)
	}
	return entry, nil
}

// store sends the messages from start to end in one command and reports whether all were
// confirmed. A server that does not have the script in its cache has done nothing, and gets the
// script in full.
func (p *Publisher) store(ctx context.Context, deadline time.Time, b *delayedBatch, start, end, bytes int) bool {
	var result [1]appender.Result
	for _, whole := range []bool{false, true} {
		cmd := make([]appender.Command, 1) // it belongs to the appender while its outcome is unknown
		head := appender.NewScriptHead(b.topic.Name, delayed.StoreCommand(b.topic, whole))
		cmd[0].Start(nil, head, end-start+1, 0)
		cmd[0].Field(b.topic.Name, &b.retention)
		for i := start; i < end; i++ {
			cmd[0].Field(b.dues[i], &b.entries[i])
		}
		p.appender.Do(ctx, deadline, head, cmd, bytes, result[:])
		if result[0].Outcome != appender.NotAppended || redisconn.Classify(result[0].Err) != redisconn.KindNoScript {
			break
		}
	}
	r, target := result[0], delayed.Target{Topic: b.topic}
	switch r.Outcome {
	case appender.NotAppended:
	case appender.Unknown:
		p.housekeeper().Due(target, 0)
	default:
		reply, err := delayed.ParseStored(r.ID, end-start)
		if err != nil {
			r = appender.Result{Outcome: appender.Unknown, Err: err}
			break
		}
		p.housekeeper().Stored(target, reply)
		b.confirm(start, reply, r)
		return r.Outcome == appender.Appended
	}
	b.fail(start, end, r)
	return false
}

// confirm sets the results of messages that are in Redis.
func (b *delayedBatch) confirm(start int, reply delayed.StoreReply, r appender.Result) {
	for n, stored := range reply.Entries {
		at := &b.results[start+n]
		*at = publishResult(at.Index, at.UUID, appender.Result{Outcome: r.Outcome, ID: stored.EntryID, Err: r.Err})
		if at.DelayedID = stored.DelayedID; stored.DelayedID != "" && at.Outcome == OutcomeAppended {
			at.Outcome = OutcomeScheduled
		}
	}
}

// fail sets the results of messages that are not, or not certainly, in Redis.
func (b *delayedBatch) fail(start, end int, r appender.Result) {
	for i := start; i < end; i++ {
		b.results[i] = publishResult(i, b.results[i].UUID, r)
	}
}

// entryIDs returns the entry IDs of results, empty for those without.
func entryIDs(results []PublishResult) []string {
	if results == nil {
		return nil
	}
	ids := make([]string, len(results))
	for i := range results {
		ids[i] = results[i].EntryID
	}
	return ids
}

// housekeeper returns the Publisher's use of the housekeeper of its client.
func (p *Publisher) housekeeper() *housekeeper.Handle {
	p.openKeeper.Do(func() {
		p.keeper = housekeeper.Open(p.config.Client, keeperObserver{report: func(e Event) { logKeeperEvent(p.logger, e) }})
	})
	return p.keeper
}

// delay returns the function by which a channel delays a message.
func (p *Publisher) delay(topic string) func(context.Context, *message.Message, delayed.Due) ([]PublishResult, error) {
	return func(ctx context.Context, msg *message.Message, due delayed.Due) ([]PublishResult, error) {
		return p.appendDue(ctx, topic, []*message.Message{msg}, due)
	}
}
