package main

import (
	"errors"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
)

// appendMany appends entries much faster than a client can.
var appendMany = redis.NewScript(`for _ = 1, ARGV[1] do redis.call('XADD', KEYS[1], '*', 'f', 'v') end`)

// subscribeBehind is subscribe at the end of a long stream: the group has so many entries
// before its messages.
func (l library) subscribeBehind(entries int) func(*trial) error {
	return func(t *trial) error {
		if err := t.history(entries); err != nil {
			return err
		}
		return l.subscribeFilled(t, 1)
	}
}

// history appends entries that are no messages, makes the group behind them, and appends the
// messages.
func (t *trial) history(entries int) error {
	const batch = 10_000
	for left := t.scaled(entries); left > 0; left -= batch {
		if err := appendMany.Run(t.ctx, t.server.Client, []string{t.topic}, min(batch, left)).Err(); err != nil && !errors.Is(err, redis.Nil) {
			return err
		}
	}
	return errors.Join(t.group("$"), t.append(t.fields))
}

// subscribeBeside is subscribe while another consumer of the group keeps so many entries
// pending.
func (l library) subscribeBeside(pending int) func(*trial) error {
	return func(t *trial) error {
		if err := t.group("0"); err != nil {
			return err
		}
		pending := t.scaled(pending)
		if err := appendMany.Run(t.ctx, t.server.Client, []string{t.topic}, pending).Err(); err != nil && !errors.Is(err, redis.Nil) {
			return err
		}
		if err := t.server.Client.XReadGroup(t.ctx, &redis.XReadGroupArgs{
			Group: group, Consumer: "other", Streams: []string{t.topic, ">"}, Count: int64(pending),
		}).Err(); err != nil {
			return err
		}
		t.foreign = int64(pending)
		if err := t.append(t.fields); err != nil {
			return err
		}
		return l.subscribeFilled(t, 1)
	}
}

// hold keeps so many messages in flight and acknowledges the oldest of them whenever another
// one arrives. Twice as many may be in flight, so that none waits for a place.
func (l library) hold(inFlight int) func(*trial) error {
	return func(t *trial) error {
		if err := t.fill(); err != nil {
			return err
		}
		sub, err := l.subscriber(t, settings{maxInFlight: 2000})
		if err != nil {
			return err
		}
		if err := t.start(); err != nil {
			return err
		}
		messages, err := sub.Subscribe(t.ctx, t.topic)
		if err != nil {
			return errors.Join(err, sub.Close())
		}
		received := t.loops(1, func(int) error {
			held, next := make([]*message.Message, min(inFlight, t.n)), 0
			for msg := range messages {
				t.arrived(msg)
				held[next%len(held)] = msg
				if next++; next >= len(held) {
					held[next%len(held)].Ack()
				}
				for ; next < t.n+len(held) && t.complete(); next++ {
					held[next%len(held)].Ack() // all of them; the first once more, which does no harm
				}
			}
			return nil
		})
		return errors.Join(l.finish(t, sub), <-received)
	}
}
