package consumer

import (
	"context"
	"time"

	"github.com/flaminco/redischannels/internal/control"
	"github.com/flaminco/redischannels/internal/redisconn"
	"github.com/flaminco/redischannels/internal/stream"
)

// lookTimeout is the timeout of a check; without a reply the last known state stays.
const lookTimeout = time.Second

// pauser checks whether the group is paused or was sought when the window requests it: never while the
// subscription is idle, because claim scans check then. It has its own goroutine, because leases
// are renewed meanwhile.
type pauser struct {
	c       *Consumer
	control *redisconn.Control
	refused bool // the last check was refused, which is reported
}

func (p *pauser) run(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.c.win.Pause.Look:
		case <-timer.C:
		}
		wait, ok := p.c.win.Pause.Due()
		if ok && wait == 0 {
			p.look(ctx)
			wait, ok = p.c.win.Pause.Due()
		}
		if ok {
			timer.Reset(wait)
		}
	}
}

// look checks. Without a reply in time the last known state stays; other duties detect and report
// an outage.
func (p *pauser) look(ctx context.Context) {
	late := time.AfterFunc(lookTimeout, p.c.win.Pause.Blind)
	defer late.Stop()
	sent := time.Now()
	found, err := p.ask(ctx)
	if err == nil {
		p.refused = false
		p.saw(sent, found.Paused, found.Sought)
		return
	}
	p.c.win.Pause.Blind()
	if redisconn.Classify(err).Retryable() {
		p.control.Reset()
		return
	}
	if ctx.Err() == nil && !p.refused {
		p.refused = true
		p.c.cfg.Observer.Failed(err)
	}
}

func (p *pauser) ask(ctx context.Context) (control.Paused, error) {
	client, err := p.control.Client(ctx)
	if err != nil {
		return control.Paused{}, err
	}
	return control.Look(ctx, client, p.c.cfg.Topic, p.c.cfg.Group)
}

// saw records the result of a check. A group that was sought is paused for this consumer until the
// reader has taken a new name.
func (p *pauser) saw(sent time.Time, paused bool, sought stream.Sought) {
	p.c.id.saw(sought)
	paused = paused || p.c.id.newer() != nil
	if !p.c.win.Pause.Looked(sent, paused) || !paused {
		return
	}
	p.c.Ask() // offers are withdrawn
	p.c.reader.halt()
}
