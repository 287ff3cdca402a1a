package redischannels_test

import (
	"context"
	"fmt"
	"log"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/inspect"
)

// consumerGroup is the group billing of the topic orders, on a server of its own.
type consumerGroup struct {
	client     *redis.Client
	subscriber *redischannels.Subscriber
	inspector  *inspect.Inspector
}

func exampleGroup() (group consumerGroup, stop func()) {
	client, stopServer := exampleServer()
	subscriber, err := redischannels.NewSubscriber(redischannels.SubscriberConfig{Client: client, ConsumerGroup: "billing"}, logger)
	if err != nil {
		log.Fatal(err)
	}
	if err := subscriber.SubscribeInitialize("orders"); err != nil {
		log.Fatal(err)
	}
	inspector, err := inspect.New(inspect.Config{Client: client, Actor: "on-call"}, logger)
	if err != nil {
		log.Fatal(err)
	}
	return consumerGroup{client, subscriber, inspector}, func() {
		_ = subscriber.Close()
		stopServer()
	}
}

// pauseGroup pauses a group for half an hour, and resumes it early.
func pauseGroup(ctx context.Context, client *redis.Client, done <-chan struct{}) error {
	inspector, err := inspect.New(inspect.Config{Client: client, Actor: "on-call"}, logger)
	if err != nil {
		return err
	}
	err = inspector.Pause(ctx, "orders", "billing", inspect.PauseOptions{
		Until:  time.Now().Add(30 * time.Minute),
		Reason: "the bank is down",
	})
	if err != nil {
		return err
	}
	<-done
	return inspector.Resume(ctx, "orders", "billing")
}

// printPause prints whether a group is paused.
func printPause(ctx context.Context, subscriber *redischannels.Subscriber) error {
	stats, err := subscriber.GroupStats(ctx, "orders")
	if err != nil {
		return err
	}
	if stats.Paused {
		fmt.Println("paused:", stats.PauseReason, "lag:", stats.Lag)
	}
	return nil
}

func Example_pause() {
	group, stop := exampleGroup()
	defer stop()
	ctx, done, ended := context.Background(), make(chan struct{}), make(chan error)
	go func() { ended <- pauseGroup(ctx, group.client, done) }()
	for paused := false; !paused; { // until Pause has returned
		stats, err := group.subscriber.GroupStats(ctx, "orders")
		if err != nil {
			log.Fatal(err)
		}
		paused = stats.Paused
	}
	fmt.Println(printPause(ctx, group.subscriber))
	close(done)
	fmt.Println(<-ended)
	// Output:
	// paused: the bank is down lag: 0
	// <nil>
	// <nil>
}

// printGroups prints how far the groups of all topics are behind.
func printGroups(ctx context.Context, inspector *inspect.Inspector) error {
	for topic, err := range inspector.Topics(ctx, inspect.TopicsQuery{}) {
		if err != nil {
			return err
		}
		for group, err := range inspector.Groups(ctx, topic.Name) {
			if err != nil {
				return err
			}
			fmt.Println(topic.Name, group.Name, "lag:", group.Lag, "pending:", group.Pending, "alive:", group.Alive)
		}
	}
	return nil
}

func Example_inspect() {
	group, stop := exampleGroup()
	defer stop()
	fmt.Println(printGroups(context.Background(), group.inspector))
	// Output:
	// orders billing lag: 0 pending: 0 alive: 0
	// <nil>
}

// removeGroup deletes a group that no program uses any more, and what only this group needed.
func removeGroup(ctx context.Context, inspector *inspect.Inspector) error {
	removed, err := inspector.RemoveGroup(ctx, "orders", "billing", inspect.RemoveGroupOptions{})
	if err != nil {
		return err
	}
	fmt.Println("pending:", removed.Pending)
	kept, err := inspector.Trim(ctx, "orders")
	if err != nil {
		return err
	}
	fmt.Println("left:", kept.Length, "because of:", kept.Pin)
	return nil
}

func Example_removeGroup() {
	group, stop := exampleGroup()
	defer stop()
	if err := removeGroup(context.Background(), group.inspector); err != nil {
		log.Fatal(err)
	}
	// Output:
	// pending: 0
	// left: 0 because of: no group
}

// requeueTimeouts requeues what its dry run has listed.
func requeueTimeouts(ctx context.Context, inspector *inspect.Inspector) error {
	selection := inspect.DeadLetterSelection{Group: "billing", Reason: "timeout", DryRun: true}
	plan, err := inspector.Requeue(ctx, "orders", selection)
	if err != nil {
		return err
	}
	fmt.Println("would requeue:", len(plan.IDs))
	selection.IDs, selection.DryRun, selection.PerSecond = plan.IDs, false, 50
	change, err := inspector.Requeue(ctx, "orders", selection)
	if err != nil {
		return err
	}
	fmt.Println("requeued:", change.Changed)
	return nil
}

func Example_requeue() {
	group, stop := exampleGroup()
	defer stop()
	fmt.Println(requeueTimeouts(context.Background(), group.inspector))
	// Output:
	// would requeue: 0
	// requeued: 0
	// <nil>
}

// seekGroup delivers to a paused group again, in new attempts, what was appended in the last hour.
func seekGroup(ctx context.Context, inspector *inspect.Inspector) error {
	options := inspect.SeekOptions{To: redischannels.Since(time.Now().Add(-time.Hour))}
	plan, err := inspector.SeekPlan(ctx, "orders", "billing", options)
	if err != nil {
		return err
	}
	fmt.Println("delivered again:", plan.Redelivered, "skipped:", plan.Skipped, "busy:", plan.Busy)
	return inspector.Seek(ctx, "orders", "billing", options)
}

func Example_seek() {
	group, stop := exampleGroup()
	defer stop()
	ctx := context.Background()
	if err := group.inspector.Pause(ctx, "orders", "billing", inspect.PauseOptions{}); err != nil {
		fmt.Println(err)
	}
	fmt.Println(seekGroup(ctx, group.inspector))
}
