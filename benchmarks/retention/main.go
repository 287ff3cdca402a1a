// Command retention measures how many entries a stream keeps, and how much memory Redis uses, with each setting of
// Retention, while messages are published and consumed: at full speed or at a rate.
//
// A figure counts only when every group has received every message that its setting keeps for it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"regexp"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/benchmarks/internal/local"
)

const topic = "orders"

// setting is what is measured.
type setting struct {
	name      string
	retention redischannels.Retention
	groups    int
}

var settings = []setting{
	{name: "none", groups: 1},
	{name: "MaxLen 100,000", retention: redischannels.Retention{MaxLen: 100_000}, groups: 1},
	{name: "TrimConsumed", retention: consumed(0), groups: 1},
	{name: "TrimConsumed, 4 groups", retention: consumed(0), groups: 4},
	{name: "TrimConsumed, Keep 10 s", retention: consumed(10 * time.Second), groups: 1},
}

func consumed(keep time.Duration) redischannels.Retention {
	return redischannels.Retention{TrimConsumed: &redischannels.TrimConsumed{Keep: keep}}
}

// load is how much is published.
type load struct {
	messages, payload int
	rate              float64 // per second, 0 for full speed
}

// result is what was measured.
type result struct {
	took           time.Duration
	longest, left  int64 // entries
	most, leftover int64 // bytes, beyond those of an empty server
}

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	slog.SetLogLoggerLevel(slog.LevelWarn)
	var l load
	flag.IntVar(&l.messages, "n", 1_000_000, "`messages` to publish")
	flag.IntVar(&l.payload, "payload", 256, "`bytes` of a message")
	flag.Float64Var(&l.rate, "rate", 0, "`messages` per second; 0 is full speed")
	pattern := flag.String("run", "", "measure the settings whose names match this `regexp`")
	flag.Parse()
	if err := run(ctx, l, *pattern); err != nil {
		cancel()
		fmt.Fprintln(os.Stderr, "retention:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, l load, pattern string) error {
	match, err := regexp.Compile(pattern)
	if err != nil || l.messages < 1 || l.payload < 1 || l.rate < 0 || flag.NArg() > 0 {
		return errors.Join(err, errors.New("the flags must be above 0, and there are no arguments"))
	}
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "setting\tmessages\tseconds\tmost entries\tleft\tmost memory\tleft")
	for _, s := range settings {
		if !match.MatchString(s.name) {
			continue
		}
		r, err := measure(ctx, s, l)
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		fmt.Fprintf(table, "%s\t%d\t%.0f\t%d\t%d\t%.1f MB\t%.1f MB\n", s.name, l.messages, r.took.Seconds(), r.longest, r.left, float64(r.most)/1e6, float64(r.leftover)/1e6)
		if err := table.Flush(); err != nil {
			return err
		}
	}
	return nil
}

// measure publishes and consumes with a setting, on a server of its own.
func measure(ctx context.Context, s setting, l load) (r result, err error) {
	server, err := local.StartRedis(ctx)
	if err != nil {
		return r, err
	}
	defer server.Stop()
	client := redis.NewClient(&redis.Options{Addr: server.Addr})
	defer client.Close()
	empty, err := usedMemory(ctx, server)
	if err != nil {
		return r, err
	}
	publisher, err := redischannels.NewPublisher(redischannels.PublisherConfig{Client: client, Retention: s.retention}, nil)
	if err != nil {
		return r, err
	}
	defer publisher.Close()

	began := time.Now()
	working, stop := context.WithCancel(ctx)
	defer stop()
	work := []func() error{func() error { return publish(working, publisher, l) }}
	for n := range s.groups {
		received, err := consume(working, client, "group-"+strconv.Itoa(n), l.messages, s.retention.MaxLen > 0)
		if err != nil {
			return r, err
		}
		work = append(work, received)
	}
	done := together(work)
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for {
		sampleErr := r.sample(ctx, server, client, empty)
		select {
		case err := <-done:
			r.took = time.Since(began)
			return r, errors.Join(err, r.settle(ctx, server, client, empty, s))
		case <-ticker.C:
			if sampleErr != nil {
				return r, sampleErr
			}
		}
	}
}

// together calls functions and returns their errors when all have returned.
func together(work []func() error) <-chan error {
	errs := make([]error, len(work))
	var running sync.WaitGroup
	for i, fn := range work {
		running.Go(func() { errs[i] = fn() })
	}
	done := make(chan error, 1)
	go func() {
		running.Wait()
		done <- errors.Join(errs...)
	}()
	return done
}

func usedMemory(ctx context.Context, server *local.Redis) (int64, error) {
	info, err := server.Info(ctx, "memory")
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(info["used_memory"], 10, 64)
}

// sample notes the length and the memory.
func (r *result) sample(ctx context.Context, server *local.Redis, client *redis.Client, empty int64) (err error) {
	if r.left, err = client.XLen(ctx, topic).Result(); err != nil {
		return err
	}
	used, err := usedMemory(ctx, server)
	r.leftover = used - empty
	r.longest, r.most = max(r.longest, r.left), max(r.most, r.leftover)
	return err
}

// settle waits until the housekeeper has looked at the stream a last time.
func (r *result) settle(ctx context.Context, server *local.Redis, client *redis.Client, empty int64, s setting) error {
	if s.retention.TrimConsumed == nil {
		return r.sample(ctx, server, client, empty)
	}
	select {
	case <-time.After(6*time.Second + s.retention.TrimConsumed.Keep):
	case <-ctx.Done():
	}
	return r.sample(ctx, server, client, empty)
}

// batch is how many messages one call publishes.
const batch = 100

func publish(ctx context.Context, publisher *redischannels.Publisher, l load) error {
	payload := make([]byte, l.payload)
	for n := range payload {
		payload[n] = byte('a' + n%26)
	}
	began := time.Now()
	for n := 0; n < l.messages; n += batch {
		if l.rate > 0 {
			due := began.Add(time.Duration(float64(n) / l.rate * float64(time.Second)))
			select {
			case <-time.After(time.Until(due)):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		msgs := make([]*message.Message, min(batch, l.messages-n))
		for i := range msgs {
			msgs[i] = message.NewMessage(watermill.NewUUID(), payload)
		}
		if _, err := publisher.Append(ctx, topic, msgs...); err != nil {
			return err
		}
	}
	return nil
}

// consume begins a group and returns what waits until it has received all messages, or, where the
// publisher may take some from it, has lost the rest.
func consume(ctx context.Context, client *redis.Client, group string, n int, loses bool) (func() error, error) {
	var lost atomic.Int64
	subscriber, err := redischannels.NewSubscriber(redischannels.SubscriberConfig{
		Client: client, ConsumerGroup: group, MaxInFlight: 2000,
		OnEvent: func(e redischannels.Event) {
			if e.Kind == redischannels.EventTrimmed {
				lost.Add(int64(max(1, e.Count)))
			}
		},
	}, watermill.NopLogger{})
	if err != nil {
		return nil, err
	}
	batches, err := subscriber.SubscribeBatch(ctx, topic, redischannels.BatchConfig{Size: 500, Wait: 20 * time.Millisecond})
	if err != nil {
		return nil, err
	}
	return func() error {
		received := 0
		for received+int(lost.Load()) < n {
			select {
			case msgs, open := <-batches:
				if !open {
					return errors.New(group + ": the subscription has ended")
				}
				for _, msg := range msgs {
					msg.Ack()
				}
				received += len(msgs)
			case <-time.After(30 * time.Second):
				return fmt.Errorf("%s: received %d of %d, and nothing for 30 s", group, received, n)
			}
		}
		err := subscriber.Close()
		if lost := lost.Load(); lost > 0 && !loses {
			err = errors.Join(err, fmt.Errorf("%s: %d entries were reported as lost", group, lost))
		}
		return err
	}, nil
}
