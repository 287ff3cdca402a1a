package consumer

import (
	"context"

	"github.com/flaminco/redischannels/internal/stream"
	"github.com/flaminco/redischannels/internal/window"
)

// moveBatch is the maximum number of moves in one pipeline.
const moveBatch = 100

// mover moves entries to the dead-letter stream, and calls the deferrer for others.
type mover struct {
	writing
	c *Consumer
}

func newMover(c *Consumer) *mover {
	m := &mover{c: c}
	m.writing = writing{ready: c.win.Acks.Moves, flushing: make(chan struct{}), pending: c.win.Acks.PendingMoves, write: m.move, given: m.given}
	return m
}

func (m *mover) given(items []*window.Item) {
	m.c.cfg.Observer.Abandoned(texts(items), errNotWritten)
}

func (m *mover) move(ctx context.Context, items []*window.Item) {
	for len(items) > 0 && ctx.Err() == nil {
		n := min(len(items), moveBatch)
		m.batch(ctx, items[:n])
		items = items[n:]
	}
}

// batch moves entries. The fields of entries that the stream no longer has are sent from memory.
func (m *mover) batch(ctx context.Context, items []*window.Item) {
	m.c.restorer.writing.RLock()
	defer m.c.restorer.writing.RUnlock()
	var here, deferred []*window.Item
	var lost []string
	standings := m.c.win.Acks.Standings(items, make([]window.Standing, 0, len(items)))
	for i, it := range items {
		switch {
		case standings[i] == window.Lost:
			lost = append(lost, it.EntryID())
			m.c.win.Remove(it)
		case it.Deferred && standings[i] == window.Trimmed: // nothing to store
			m.c.win.Acks.Keep(it)
		case it.Deferred:
			deferred = append(deferred, it)
		default:
			here = append(here, it)
		}
	}
	if len(lost) > 0 {
		m.c.acker.late(lost)
	}
	m.c.deferrer.write(ctx, deferred)
	trimmed := m.send(ctx, here)
	for _, it := range trimmed {
		m.c.restorer.trimmed(it)
	}
	m.send(ctx, trimmed)
}

// send moves entries and returns those whose fields must be sent from memory.
func (m *mover) send(ctx context.Context, items []*window.Item) (trimmed []*window.Item) {
	_ = m.c.id.each(items, func(_ int, items []*window.Item) error {
		moves := make([]stream.DeadLetterMove, len(items))
		for i, it := range items {
			moves[i] = m.describe(it)
		}
		results, errs := stream.MoveToDeadLetters(ctx, m.c.cfg.Client, moves)
		for i, it := range items {
			switch {
			case errs[i] != nil:
				m.failed(it, errs[i])
			case results[i].Outcome == stream.DeadLetterGone && moves[i].Fields == nil:
				trimmed = append(trimmed, it)
			case results[i].Outcome == stream.DeadLetterMoved:
				m.c.win.Remove(it)
				m.c.cfg.Observer.DeadLettered(it.EntryID(), it.Reason)
			default:
				m.c.win.Remove(it)
				m.c.acker.late([]string{it.EntryID()})
			}
		}
		return nil
	})
	return trimmed
}

func (m *mover) describe(it *window.Item) stream.DeadLetterMove {
	self := m.c.id.self.Load()
	move := stream.DeadLetterMove{
		Stream:    m.c.id.keys[it.Stream],
		Topic:     m.c.id.keys[0],
		DeadTopic: m.c.cfg.DeadTopic,
		Group:     m.c.cfg.Group,
		Consumer:  self.name,
		Control:   m.c.id.control,
		Sought:    self.sought,
		ID:        it.Text,
		EntryID:   it.EntryID(),
		Reason:    it.Reason,
		Count:     it.Deliveries(),
		Again:     it.Attempts > 0,
		Trim:      m.c.cfg.DeadTrim,
	}
	if m.c.win.Leases.Trimmed(it) {
		it.Fields(func(name, value []byte) { move.Fields = append(move.Fields, string(name), string(value)) })
	}
	return move
}

func (m *mover) failed(it *window.Item, err error) {
	retryLater(it)
	if !m.c.restorer.sought(err) && it.Attempts == 1 {
		m.c.cfg.Observer.DeadLetterFailed(it.EntryID(), err)
	}
}
