package redischannels_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/schedule"
)

// runSchedules publishes on weekdays, and once in two days.
func runSchedules(ctx context.Context, client *redis.Client) error {
	schedules, err := schedule.New(schedule.Config{Client: client, Topic: "reports"}, logger)
	if err != nil {
		return err
	}
	defer schedules.Close()
	if _, err := schedules.Put(ctx, schedule.Schedule{
		ID: "daily", Cron: "0 9 * * 1-5", Zone: "Europe/Berlin",
		Message: message.NewMessage("", []byte("sales of yesterday")),
	}); err != nil {
		return err
	}
	if err := schedules.At(ctx, "order-7", time.Now().Add(48*time.Hour), message.NewMessage("", []byte("ask for a review"))); err != nil {
		return err
	}
	return schedules.Run(ctx)
}

// listSchedules prints schedules with their last runs.
func listSchedules(ctx context.Context, schedules *schedule.Schedules) error {
	for info, err := range schedules.List(ctx) {
		if err != nil {
			return err
		}
		fmt.Println(info.ID, info.Next, info.Paused, info.Err)
		for _, run := range info.Runs {
			fmt.Println(run.Tick, run.EntryID, run.Skipped)
		}
	}
	return nil
}

func Example_schedules() {
	client, stop := exampleServer()
	defer stop()
	schedules, err := schedule.New(schedule.Config{Client: client, Topic: "invoices"}, logger)
	if err != nil {
		log.Fatal(err)
	}
	defer schedules.Close()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	fmt.Println(listSchedules(context.Background(), schedules), errors.Is(runSchedules(ctx, client), context.Canceled))
	// Output: <nil> true
}
