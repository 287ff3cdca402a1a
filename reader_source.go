package redischannels

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flaminco/redischannels/internal/lifecycle"
	"github.com/flaminco/redischannels/internal/source"
)

// subscribeFunc opens a subscription. ctx bounds the opening.
type subscribeFunc func(ctx context.Context) (source.Source, error)

// lazySource is the subscription of a Reader, which is opened at the first use. It is safe for
// concurrent use.
type lazySource struct {
	topic     string
	subscribe subscribeFunc
	life      *lifecycle.State
	opened    atomic.Pointer[source.Source] // nil before
	opening   chan struct{}                 // held while the subscription is opened, and by close
	done      chan struct{}                 // closed when close has ended

	errs     atomic.Int64 // length of returned
	mu       sync.Mutex
	returned []error               // for the next reads
	children map[followed]struct{} // closed with this one
}

func newLazySource(topic string, subscribe subscribeFunc) *lazySource {
	return &lazySource{
		topic:     topic,
		subscribe: subscribe,
		life:      lifecycle.New(fmt.Errorf("redischannels: read %q: reader: %w", topic, ErrClosed)),
		opening:   make(chan struct{}, 1),
		done:      make(chan struct{}),
		children:  make(map[followed]struct{}),
	}
}

// next is NextBatch of the subscription. The error is one of returnError, of ctx or of
// subscribing, wraps ErrClosed, or is a *GapError.
func (s *lazySource) next(ctx context.Context, dst []*source.Attempt, limits source.Limits) ([]*source.Attempt, error) {
	src, err := s.open(ctx)
	if err != nil {
		return dst, err
	}
	if s.errs.Load() > 0 {
		if err := s.takeError(); err != nil {
			return dst, err
		}
	}
	if dst, err = src.NextBatch(ctx, dst, limits); err != nil {
		err = s.readError(err)
	}
	return dst, err
}

// readError converts an error of a source to a public one.
func (s *lazySource) readError(err error) error {
	var gap *source.GapError
	switch {
	case errors.As(err, &gap):
		return &GapError{Topic: gap.Topic, After: gap.After, FirstAvailable: gap.FirstAvailable}
	case errors.Is(err, source.ErrEnded):
		s.life.End(fmt.Errorf("redischannels: read %q: %w: %w", s.topic, source.ErrEnded, ErrClosed))
		return s.life.Err()
	case errors.Is(err, source.ErrClosed):
		s.life.End(nil)
		return s.life.Err()
	}
	return err
}

// open subscribes, unless it has already.
func (s *lazySource) open(ctx context.Context) (source.Source, error) {
	if err := s.life.Err(); err != nil {
		return nil, err
	}
	if opened := s.opened.Load(); opened != nil {
		return *opened, ctx.Err()
	}
	select {
	case s.opening <- struct{}{}:
		defer func() { <-s.opening }()
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-s.life.Context().Done():
		return nil, s.life.Err()
	}
	if err := s.life.Err(); err != nil {
		return nil, err
	}
	if opened := s.opened.Load(); opened != nil {
		return *opened, ctx.Err()
	}
	opening, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.life.Context(), cancel)()
	src, err := s.subscribe(opening)
	if err != nil {
		if closed := s.life.Err(); closed != nil {
			return nil, closed
		}
		return nil, err
	}
	s.opened.Store(&src)
	return src, nil
}

// returnError makes the next read return an error, before those that already wait.
func (s *lazySource) returnError(errs ...error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.returned = slices.Insert(s.returned, 0, errs...)
	s.errs.Store(int64(len(s.returned)))
}

func (s *lazySource) takeError() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.returned) == 0 {
		return nil
	}
	err := s.returned[0]
	s.returned = slices.Delete(s.returned, 0, 1)
	s.errs.Store(int64(len(s.returned)))
	return err
}

// close ends the subscription. It waits for the deliveries in flight, as long as the subscription
// does.
func (s *lazySource) close() { _ = s.life.Close(s.stop) }

// closeWithin is close with a bound.
func (s *lazySource) closeWithin(drain time.Duration) error { return s.life.CloseWithin(drain, s.stop) }

func (s *lazySource) stop() error {
	defer close(s.done)
	s.opening <- struct{}{}
	defer func() { <-s.opening }()
	s.mu.Lock()
	children := make([]followed, 0, len(s.children))
	for child := range s.children {
		children = append(children, child)
	}
	s.mu.Unlock()
	for _, child := range children {
		child.close()
	}
	if opened := s.opened.Load(); opened != nil {
		_ = (*opened).Close(context.Background()) // it waits, so there is nothing that could fail
	}
	return nil
}

// adopt registers the source of a loop over Follow, which close closes.
func (s *lazySource) adopt(child followed) error {
	s.mu.Lock()
	s.children[child] = struct{}{}
	s.mu.Unlock()
	return s.life.Err() // if close has begun it may have missed the child
}

// disown closes an adopted source.
func (s *lazySource) disown(child followed) {
	child.close()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.children, child)
}

// isEnd reports whether an error of next ends a loop without being yielded: the errors of ctx and
// of close do, the error of a subscription that its transport has ended does not.
func (s *lazySource) isEnd(ctx context.Context, err error) bool {
	if isReported(err) {
		return false // it would be lost
	}
	return ctx.Err() != nil || s.life.Err() != nil && !s.endedByTransport()
}

// endedByTransport reports whether nothing comes any more although it was not closed.
func (s *lazySource) endedByTransport() bool { return errors.Is(s.life.Err(), source.ErrEnded) }

// isReported reports whether an error is about entries, after which reading continues.
func isReported(err error) bool {
	var gap *GapError
	var undecodable *DecodeError
	return errors.As(err, &gap) || errors.As(err, &undecodable)
}

// followed is the source of a Follow loop. One goroutine calls its methods, except close.
type followed interface {
	// next returns the next attempt, which needs no acknowledgement, or an error. The first call
	// subscribes.
	next(ctx context.Context) (*source.Attempt, error)
	// context returns the context of a delivery of the attempt, which does not end with the
	// attempt.
	context(a *source.Attempt) context.Context
	// isEnd reports whether an error of next ends the loop without being yielded.
	isEnd(ctx context.Context, err error) bool
	// endedByTransport reports whether nothing comes any more although it was not closed.
	endedByTransport() bool
	// close ends next and returns when all goroutines have ended.
	close()
}

// unacked contains the deliveries of a Reader that can be acknowledged by their IDs. It is safe
// for concurrent use.
type unacked struct {
	mu   sync.Mutex
	byID map[string]attempts
}

// attempts are the attempts of one ID. There may be several, because a message was published
// twice. An attempt whose context has ended, because the lease was lost, is not used when the
// entry is delivered again.
type attempts struct {
	latest *source.Attempt
	older  []*source.Attempt // nil mostly
}

func (u *unacked) add(id string, a *source.Attempt) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.byID == nil {
		u.byID = make(map[string]attempts)
	}
	of := attempts{latest: a}
	if known, ok := u.byID[id]; ok && known.latest.Err() == nil {
		of.older = append(known.older, known.latest)
	}
	u.byID[id] = of
}

// find returns the latest attempt of an ID, or nil.
func (u *unacked) find(id string) *source.Attempt {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.byID[id].latest
}

func (u *unacked) remove(id string, a *source.Attempt) {
	u.mu.Lock()
	defer u.mu.Unlock()
	of := u.byID[id]
	if of.latest == a {
		if len(of.older) == 0 {
			delete(u.byID, id)
			return
		}
		last := len(of.older) - 1
		of.latest, of.older = of.older[last], of.older[:last]
		u.byID[id] = of
		return
	}
	if i := slices.Index(of.older, a); i >= 0 {
		of.older = slices.Delete(of.older, i, i+1)
		u.byID[id] = of
	}
}
