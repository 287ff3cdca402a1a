package housekeeper

import (
	"context"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/delayed"
	"github.com/flaminco/redischannels/internal/redisconn"
)

// mover is the job of moving what is due for one target, for as long as something is in its due set.
type mover struct {
	keeper *keeper
	target delayed.Target
}

func (m mover) look(ctx context.Context) (result, error) {
	page, err := m.keeper.move(ctx, m.keeper.client, m.target)
	if err != nil {
		return result{}, err
	}
	after, more := nextMove(page)
	return result{more: more, after: after, report: func(o Observer) { deadLetters(o, m.target, page) }}, nil
}

// nextMove returns when to look again, or that there is nothing left.
func nextMove(page delayed.Page) (after time.Duration, more bool) {
	switch {
	case page.Next < 0:
		return 0, false
	case page.Other: // it is there when the next entry is due; this one is for the case that it dies
		return page.Next + followInterval, true
	case page.Leads && page.Next <= delayed.LeadsFor:
		return min(max(page.Next, pageInterval), leadInterval), true
	default:
		return page.Next, true
	}
}

// move moves one page. A panic of a hook of the client is an error.
func (k *keeper) move(ctx context.Context, client redis.UniversalClient, target delayed.Target) (page delayed.Page, err error) {
	err = redisconn.Guard(func() (err error) {
		page, err = delayed.Move(ctx, client, target, k.name)
		return err
	})
	return page, err
}

func deadLetters(o Observer, target delayed.Target, page delayed.Page) {
	if len(page.Letters) > 0 {
		o.DeadLetters(target, page.Letters)
	}
}
