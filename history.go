package redischannels

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/flaminco/redischannels/internal/stream"
)

// History reads pages of this many entries at most, and of this many bytes as far
// as the sizes seen so far tell.
const (
	historyPage  = 1000
	historyBytes = 4 << 20
)

// History yields the messages of a topic after from, up to and including to, in
// stream order, and ends. Zero positions mean Oldest and Latest; Latest is the end
// of the stream when the iteration begins, whatever is published meanwhile. It
// reads page by page (XRANGE ... COUNT), belongs to no consumer group and changes
// nothing in Redis; Ack and Nack of its messages have no effect.
//
// An entry that cannot be decoded is yielded as a *[DecodeError], and a from that
// was trimmed away as a *[GapError] first; the iteration goes on after both. Any
// other error is the last thing yielded.
func (s *Subscriber) History(ctx context.Context, topic string, from, to Position) iter.Seq2[*message.Message, error] {
	return func(yield func(*message.Message, error) bool) {
		if err := s.history(ctx, topic, from.or(Oldest), to.or(Latest), yield); err != nil {
			yield(nil, fmt.Errorf("redischannels: history of topic %q: %w", topic, redisError(err)))
		}
	}
}

// history returns the error that ends the iteration, or nil when the loop's body
// has ended it or nothing is left.
func (s *Subscriber) history(ctx context.Context, topic string, from, to Position, yield func(*message.Message, error) bool) error {
	if err := validateTopic(topic); err != nil {
		return err
	}
	for name, p := range map[string]Position{"from": from, "to": to} {
		if err := p.validate(); err != nil {
			return fmt.Errorf("%s: %w: %w", name, ErrInvalidArgument, err)
		}
	}
	if err := s.isClosed(); err != nil {
		return err
	}
	sub := &subscription{origin: origin{topic: topic, values: context.WithoutCancel(ctx)}, decoder: newDecoder(s.cfg.SubscriberConfig, topic)}
	info, err := stream.Stat(ctx, s.cfg.Client, topic)
	if err != nil {
		return err
	}
	cursor, last := from.cursor(info), to.cursor(info).ID
	page := 10
	for cursor.ID.Less(last) {
		if err := errors.Join(ctx.Err(), s.isClosed()); err != nil {
			return err
		}
		asked := cursor.ID
		entries, err := stream.Range(ctx, s.cfg.Client, topic, asked, last, page)
		if err != nil {
			return err
		}
		if info, err = stream.Stat(ctx, s.cfg.Client, topic); err != nil {
			return err
		}
		missed, rewound := cursor.Check(entries, info)
		if missed && !yield(nil, newGapError(topic, asked, entries, info)) {
			return nil
		}
		largest := 1
		for i := range entries {
			largest = max(largest, entries[i].Size)
			e := &entries[i]
			msg, err := sub.decoder.decode(e)
			if msg != nil {
				msg.SetContext(context.WithValue(ctx, deliveryKey{}, &delivery{from: &sub.origin, id: e.Text, count: 1}))
			}
			if !yield(msg, err) {
				return nil
			}
		}
		if rewound || len(entries) < page {
			return nil
		}
		page = min(max(1, historyBytes/largest), historyPage, 4*page)
	}
	return nil
}
