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

// pauser checks whether the group is paused when the window requests it: never while the
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
	paused, err := p.ask(ctx)
	if err == nil {
		p.refused = false
		p.saw(sent, paused)
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

func (p *pauser) ask(ctx context.Context) (stream.Pause, error) {
	client, err := p.control.Client(ctx)
	if err != nil {
		return stream.PauseUnknown, err
	}
	found, err := control.Look(ctx, client, p.c.cfg.Topic, p.c.cfg.Group)
	if found.Paused {
		return stream.Paused, err
	}
	return stream.Running, err
}

// saw records the result of a check.
func (p *pauser) saw(sent time.Time, pause stream.Pause) {
	if pause == stream.PauseUnknown || !p.c.win.Pause.Looked(sent, pause == stream.Paused) || pause == stream.Running {
		return
	}
	p.c.Ask() // offers are withdrawn
	p.c.reader.halt()
}
