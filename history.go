package redischannels

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/flaminco/redischannels/internal/source"
	"github.com/flaminco/redischannels/internal/stream"
	"github.com/flaminco/redischannels/internal/tail"
)

// History yields the messages of a topic after from, up to and including to, in stream order, and
// ends. Zero positions mean Oldest and Latest; Latest is the end of the stream when the iteration
// begins, even if messages are published meanwhile. It reads page by page (XRANGE ... COUNT),
// belongs to no consumer group and changes nothing in Redis; Ack and Nack of its messages have no
// effect.
//
// An entry that cannot be decoded is yielded as a *[DecodeError]. If entries after from were
// trimmed, a *[GapError] is yielded first. The iteration continues after both. Any other error
// ends it.
func (s *Subscriber) History(ctx context.Context, topic string, from, to Position) iter.Seq2[*message.Message, error] {
	return func(yield func(*message.Message, error) bool) {
		decoding := s.decoding(topic)
		for a, err := range s.history(ctx, topic, from, to) {
			var msg *message.Message
			if err == nil {
				if msg, err = decoding.message(a); err == nil {
					msg.SetContext(source.NewContext(ctx, a))
				}
				a.Entry.Release()
			}
			if !yield(msg, err) {
				return
			}
		}
	}
}

// history yields attempts for the entries of a topic, which need no acknowledgement.
func (s *Subscriber) history(ctx context.Context, topic string, from, to Position) iter.Seq2[*source.Attempt, error] {
	return func(yield func(*source.Attempt, error) bool) {
		if err := s.historyPages(ctx, topic, from.or(Oldest), to.or(Latest), yield); err != nil {
			yield(nil, fmt.Errorf("redischannels: history of topic %q: %w", topic, redisError(err)))
		}
	}
}

// historyPages returns the error that ends the iteration, or nil if the loop's body has ended it
// or no entry is left.
func (s *Subscriber) historyPages(ctx context.Context, topic string, from, to Position, yield func(*source.Attempt, error) bool) error {
	if err := validateTopic(topic); err != nil {
		return err
	}
	for name, p := range map[string]Position{"from": from, "to": to} {
		if err := p.validate(); err != nil {
			return fmt.Errorf("%s: %w: %w", name, ErrInvalidArgument, err)
		}
	}
	if err := s.life.Err(); err != nil {
		return err
	}
	h, err := tail.OpenHistory(ctx, s.cfg.Client, topic, from.start(), to.start())
	if err != nil {
		return err
	}
	origin := entryOrigin(ctx, topic)
	for h.More() {
		if err := errors.Join(ctx.Err(), s.life.Err()); err != nil {
			return err
		}
		page, err := h.Next(ctx)
		if err != nil {
			return err
		}
		if page.Gap != nil && !yield(nil, newGapError(topic, *page.Gap)) {
			return nil
		}
		for i := range page.Entries {
			if !yield(shownAttempt(origin, &page.Entries[i]), nil) {
				return nil
			}
		}
		stream.Recycle(page.Entries)
	}
	return nil
}

// entryOrigin is the origin of attempts for entries that need no acknowledgement.
func entryOrigin(ctx context.Context, topic string) *source.Origin {
	return &source.Origin{Topic: topic, Entries: true, Values: context.WithoutCancel(ctx)}
}

// shownAttempt returns an attempt for an entry that needs no acknowledgement. The caller releases
// the entry.
func shownAttempt(from *source.Origin, e *stream.Entry) *source.Attempt {
	return &source.Attempt{From: from, Topic: from.Topic, ID: e.Text, Count: 1, Entry: e.Share()}
}

// pages opens a pager of a topic, which Close ends.
func (s *Subscriber) pages(ctx context.Context, topic string, from Position) (*tail.Pager, error) {
	log := s.logger.With(watermill.LogFields{"topic": topic})
	report := func(e Event) {
		e.Topic = topic
		logEvent(log, e)
		callOnEvent(s.cfg.OnEvent, log, e)
	}
	pager, err := s.readers.Open(ctx, topic, from.start(), max(0, s.cfg.Tuning.Prefetch)+s.cfg.MaxInFlight,
		s.cfg.Tuning.PrefetchBytes, pagerObserver{report, topic})
	if errors.Is(err, tail.ErrClosed) {
		err = fmt.Errorf("subscriber: %w", ErrClosed)
	}
	if err != nil {
		return nil, fmt.Errorf("redischannels: subscribe to topic %q: %w", topic, redisError(err))
	}
	return pager, nil
}

// pagerObserver converts the reports of a pager to events.
type pagerObserver struct {
	report func(Event)
	topic  string
}

// Read implements tail.Observer.
func (o pagerObserver) Read() {}

// Disconnected implements tail.Observer.
func (o pagerObserver) Disconnected(err error) {
	o.report(Event{Kind: EventDisconnected, Err: redisError(err)})
}

// Reconnected implements tail.Observer.
func (o pagerObserver) Reconnected(outage time.Duration) {
	o.report(Event{Kind: EventReconnected, Duration: outage})
}

// Gap implements tail.PagerObserver.
func (o pagerObserver) Gap(gap tail.Gap) {
	o.report(Event{Kind: EventGap, Err: newGapError(o.topic, gap)})
}

// Rewound implements tail.PagerObserver.
func (o pagerObserver) Rewound(rewind tail.Rewind) {
	o.report(Event{Kind: EventRewound, Position: rewind.Last.String()})
}

// followedStream is a stream that Reader.Follow reads.
type followedStream struct {
	subscriber *Subscriber
	topic      string
	from       Position
	live       func(start stream.ID) // see Reader.follow; may be nil
	life       context.Context       // ends with close
	stop       context.CancelFunc

	opening sync.Mutex  // held while the pager is opened, and by close
	pager   *tail.Pager // nil before

	// These belong to the goroutine that calls next.
	origin *source.Origin // nil before the pager is open
	page   tail.Page
	read   int // entries of the page that were returned
}

func (s *Subscriber) follow(topic string, from Position, live func(start stream.ID)) *followedStream {
	f := &followedStream{subscriber: s, topic: topic, from: from, live: live}
	f.life, f.stop = context.WithCancel(context.Background())
	return f
}

// next implements followed.
func (f *followedStream) next(ctx context.Context) (*source.Attempt, error) {
	if err := cmp.Or(ctx.Err(), f.life.Err()); err != nil { // also in the middle of a page
		return nil, err
	}
	if f.origin == nil {
		if err := f.open(ctx); err != nil {
			return nil, err
		}
	}
	for f.read == len(f.page.Entries) {
		stream.Recycle(f.page.Entries)
		page, err := f.pager.Next(ctx)
		f.page, f.read = page, 0
		switch {
		case errors.Is(err, tail.ErrClosed):
			return nil, fmt.Errorf("redischannels: read %q: subscriber: %w", f.topic, ErrClosed)
		case err != nil:
			return nil, err
		case page.Gap != nil:
			return nil, newGapError(f.topic, *page.Gap)
		}
	}
	f.read++
	return shownAttempt(f.origin, &f.page.Entries[f.read-1]), nil
}

// context implements followed.
func (f *followedStream) context(a *source.Attempt) context.Context { return a }

// open resolves the position at which reading begins.
func (f *followedStream) open(ctx context.Context) error {
	f.opening.Lock()
	defer f.opening.Unlock()
	opening, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(f.life, cancel)()
	pager, err := f.subscriber.pages(opening, f.topic, f.from)
	if err != nil {
		return err
	}
	f.pager, f.origin = pager, entryOrigin(ctx, f.topic)
	if f.live != nil {
		f.live(pager.At())
	}
	return nil
}

// isEnd implements followed.
func (f *followedStream) isEnd(ctx context.Context, err error) bool {
	return !isReported(err) && (ctx.Err() != nil || f.life.Err() != nil)
}

// endedByTransport implements followed.
func (f *followedStream) endedByTransport() bool { return f.subscriber.life.Err() != nil }

// close implements followed.
func (f *followedStream) close() {
	f.stop()
	f.opening.Lock()
	defer f.opening.Unlock()
	if f.pager != nil {
		f.pager.Close()
	}
}

func newGapError(topic string, gap tail.Gap) *GapError {
	err := &GapError{Topic: topic, After: gap.After.String()}
	if !gap.First.IsZero() {
		err.FirstAvailable = gap.First.String()
	}
	return err
}
