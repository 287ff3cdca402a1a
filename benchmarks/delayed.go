package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/ThreeDotsLabs/watermill/components/delay"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/flaminco/redischannels"
)

// delayFor is how long each message of a row of delayed ones waits.
const delayFor = 2 * time.Second

// delayedRow measures how late messages reach the handler that were due at a steady pace. One that
// is early by the server's clock makes the trial worthless.
func delayedRow(name string, perSecond int, d time.Duration) row {
	return row{
		name: name, unit: fmt.Sprintf("ms late at %s/s", decimal(float64(perSecond))), rate: perSecond,
		metrics: []metric{{name: "p50"}, {name: "p99", most: 50}},
		peers:   []peer{{name: ours.name, messages: perSecond * int(d/time.Second), run: delayed}},
	}
}

// delayed publishes each message at its time, to be due after the delay.
func delayed(t *trial) error {
	if err := t.group("0"); err != nil {
		return err
	}
	pub, err := redischannels.NewPublisher(redischannels.PublisherConfig{Client: t.connect()}, nil)
	if err != nil {
		return err
	}
	sub, err := ours.subscriber(t, settings{})
	if err != nil {
		return err
	}
	messages, err := sub.Subscribe(t.ctx, t.topic)
	if err != nil {
		return err
	}
	if err := t.start(); err != nil {
		return err
	}
	due := make([]chan int64, t.n) // in ms since the epoch, by the server's clock
	for i := range due {
		due[i] = make(chan int64, 1)
	}
	took := hdrhistogram.New(1, time.Minute.Microseconds(), 3)
	received := t.loops(1, func(int) error {
		for msg := range messages {
			now := time.Now().UnixMicro()
			t.arrived(msg)
			if i, err := number(msg.UUID); err == nil {
				at := <-due[i]
				id, _ := redischannels.EntryIDFromContext(msg.Context())
				if milliseconds(id) < at {
					t.fail(fmt.Errorf("message %d was early: entry %s, due at %d", i, id, at))
				}
				t.record(took, now-1000*at)
			}
			msg.Ack()
		}
		return nil
	})
	err = t.pace(time.Now(), func(i int, _ time.Duration) error {
		msg := message.NewMessage(uuid(i), t.payload)
		delay.Message(msg, delay.For(delayFor))
		results, err := pub.AppendResults(t.ctx, t.topic, msg)
		if err != nil {
			return err
		}
		if results[0].DelayedID == "" {
			return fmt.Errorf("message %d was appended at once", i)
		}
		due[i] <- milliseconds(results[0].DelayedID) + delayFor.Milliseconds()
		return nil
	})
	if err == nil {
		err = t.awaitAll()
	}
	if err == nil {
		err = t.awaitSettled()
	}
	err = errors.Join(err, t.stop(), sub.Close(), pub.Close(), <-received, t.check(true))
	t.values = []float64{float64(took.ValueAtPercentile(50)) / 1000, float64(took.ValueAtPercentile(99)) / 1000}
	return err
}

// record adds what a message has taken, in microseconds; the least that the histogram has is one.
func (t *trial) record(took *hdrhistogram.Histogram, us int64) {
	if err := took.RecordValue(max(us, 1)); err != nil {
		t.fail(err)
	}
}

// milliseconds are those of an ID.
func milliseconds(id string) (ms int64) {
	_, _ = fmt.Sscanf(id, "%d-", &ms)
	return ms
}
