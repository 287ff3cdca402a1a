package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels"
)

const (
	publishBatch = 100              // rows per transaction
	patience     = 30 * time.Second // how long Redis may refuse before the import fails
	lookEvery    = 200 * time.Millisecond
)

// importer brings one input through Redis.
type importer struct {
	client *redis.Client
	in     *input
	names  names
	out    *screen
	logger watermill.LoggerAdapter
	slow   time.Duration
	tuning redischannels.Tuning
}

// restartable makes the next run take over what a killed one has left within about 4 seconds
// instead of 30. The price: a process that stalls for 3 seconds loses its orders to another
// one, which handles them a second time.
var restartable = redischannels.Tuning{MinIdle: 3 * time.Second, ClaimInterval: time.Second}

// embedded suits miniredis, which unlike Redis counts a claim as a delivery: nothing is fetched
// ahead and no other consumer can crash, so that no entry changes hands.
var embedded = redischannels.Tuning{Prefetch: redischannels.NoPrefetch, MinIdle: time.Minute}

// run publishes what is not published yet, handles until nothing is left, and reports.
func (imp *importer) run(ctx context.Context) error {
	desk := newDesk(imp)
	router, err := desk.router()
	if err != nil {
		return err
	}
	working, stop := context.WithCancel(ctx)
	defer stop()
	routed := make(chan error, 1)
	go func() { routed <- router.Run(working) }()
	select {
	case <-router.Running():
	case err := <-routed:
		return errors.Join(ctx.Err(), err)
	}
	published := make(chan error, 1)
	go func() { published <- imp.publish(working) }()

	err = imp.watch(ctx, desk, published, routed)
	stop() // the router closes the subscribers, which let handlers finish
	<-published
	err = errors.Join(err, <-routed)
	imp.out.finish()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return err
	}
	return imp.report(ctx, desk)
}

// watch shows the progress until every row is handled. It leaves both channels filled.
func (imp *importer) watch(ctx context.Context, desk *desk, published, routed chan error) error {
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	var failing time.Time // since when Redis does not answer
	all := false
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-routed:
			routed <- nil
			return errors.Join(errors.New("the router has ended"), err)
		case err := <-published:
			published <- nil
			if err != nil {
				return err
			}
			published, all = nil, true // look a last time
		case <-look.C:
		}
		state, err := imp.look(ctx)
		switch {
		case err == nil:
			failing = time.Time{}
		case failing.IsZero():
			failing = time.Now()
			imp.out.printf("Redis does not answer, waiting: %v", err)
			continue
		case time.Since(failing) > patience:
			return fmt.Errorf("Redis has not replied for %v: %w", patience, err)
		default:
			continue
		}
		imp.out.progress(fmt.Sprintf("published %d/%d   handled %d   dead-lettered %d   retries %d",
			state.published, imp.in.rows, state.handled, state.dead, desk.retries()))
		if all && state.idle {
			return nil
		}
	}
}

// state is how far the import is.
type state struct {
	published, handled, dead int
	idle                     bool // the group has acknowledged all that the stream has
}

func (imp *importer) look(ctx context.Context) (state, error) {
	// The tests of idle come first: what is counted after them can only be more.
	groups, err := imp.client.XInfoGroups(ctx, imp.names.topic).Result()
	if err != nil {
		return state{}, err
	}
	last, _, err := imp.lastPublished(ctx)
	if err != nil {
		return state{}, err
	}
	var s state
	for _, g := range groups {
		s.idle = s.idle || g.Name == group && g.Pending == 0 && g.LastDeliveredID == last
	}
	published, err := imp.client.XLen(ctx, imp.names.topic).Result()
	if err != nil {
		return state{}, err
	}
	deadTopic, err := redischannels.DefaultDeadLetterTopic(imp.names.topic)
	if err != nil {
		return state{}, err
	}
	dead, err := imp.client.XLen(ctx, deadTopic).Result()
	if err != nil {
		return state{}, err
	}
	s.published, s.dead = int(published), int(dead)
	s.handled, err = books{imp.client, imp.names}.count(ctx)
	return s, err
}

// publish appends the rows that the stream does not have yet. One call of Publish with up to
// 500 messages is a transaction, so the last entry shows exactly where to resume, after a crash
// as well as after a lost reply.
func (imp *importer) publish(ctx context.Context) error {
	publisher, err := redischannels.NewPublisher(redischannels.PublisherConfig{Client: imp.client}, imp.logger)
	if err != nil {
		return err
	}
	defer publisher.Close()

	failures := time.Time{}
	for resumed := false; ; {
		_, line, err := imp.lastPublished(ctx)
		if err == nil {
			if line > 0 && !resumed {
				imp.out.printf("An earlier run has published up to line %d", line)
			}
			resumed = true
			err = imp.publishAfter(ctx, publisher, line, func() { failures = time.Time{} })
		}
		if err == nil || ctx.Err() != nil || errors.Is(err, errForeign) {
			return err
		}
		if failures.IsZero() {
			failures = time.Now()
			imp.out.printf("Publishing fails and is tried again: %v", err)
		} else if time.Since(failures) > patience {
			return err
		}
		if err := wait(ctx, time.Second); err != nil {
			return err
		}
	}
}

// publishAfter publishes the rows behind a line and calls done after each batch.
func (imp *importer) publishAfter(ctx context.Context, publisher *redischannels.Publisher, line int, done func()) error {
	rows, err := imp.in.after(line)
	if err != nil {
		return err
	}
	for {
		var batch []*message.Message
		for len(batch) < publishBatch {
			r, err := rows.next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return err
			}
			batch = append(batch, imp.message(r))
		}
		if len(batch) == 0 {
			return nil
		}
		if _, err := publisher.Append(ctx, imp.names.topic, batch...); err != nil {
			return err
		}
		done()
	}
}

// lineKey is the metadata with the line of the file.
const lineKey = "line"

// message makes a message of a row. Its UUID names the row forever.
func (imp *importer) message(r row) *message.Message {
	line := strconv.Itoa(r.line)
	msg := message.NewMessage(imp.in.id+"-"+line, []byte(r.text))
	msg.Metadata.Set(lineKey, line)
	return msg
}

var errForeign = errors.New("the stream has an entry that is not from this import; choose another -topic")

// lastPublished returns the ID of the stream's last entry and the line that it was made from;
// 0-0 and 0 for an empty stream.
func (imp *importer) lastPublished(ctx context.Context) (id string, line int, err error) {
	entries, err := imp.client.XRevRangeN(ctx, imp.names.topic, "+", "-", 1).Result()
	if err != nil || len(entries) == 0 {
		return "0-0", 0, err
	}
	uuid, _ := entries[0].Values["_watermill_message_uuid"].(string)
	text, ok := strings.CutPrefix(uuid, imp.in.id+"-")
	line, err = strconv.Atoi(text)
	if !ok || err != nil {
		return "", 0, fmt.Errorf("%s: %w", imp.names.topic, errForeign)
	}
	return entries[0].ID, line, nil
}

// wait returns after d, or with the error of ctx.
func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
