package main

import (
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/flaminco/redischannels"
)

// pods lets three readers of one group share the orders, as three processes would: each order
// goes to one of them.
func pods(ctx context.Context, hub *redischannels.Hub, key string, out io.Writer) error {
	config := redischannels.StreamChannelConfig{Subscriber: redischannels.SubscriberConfig{ConsumerGroup: "billing"}}
	writing, err := redischannels.NewStreamChannel[Order](hub, key, config)
	if err != nil {
		return err
	}
	all := make([]Order, 300)
	for i := range all {
		all[i] = Order{ID: i + 1, Amount: 10}
	}
	if _, err := writing.Writer().WriteAll(ctx, all...); err != nil {
		return err
	}
	working, stop := context.WithCancel(ctx)
	defer stop()
	var (
		running sync.WaitGroup
		mu      sync.Mutex
		total   int
		errs    = make(chan error, 3)
	)
	for pod := range 3 {
		orders, err := redischannels.NewStreamChannel[Order](hub, key, config)
		if err != nil {
			return err
		}
		running.Go(func() {
			mine := 0
			errs <- orders.Reader().Handle(working, func(context.Context, Order) error {
				mu.Lock()
				defer mu.Unlock()
				mine++
				if total++; total == len(all) {
					stop()
				}
				return nil
			}, redischannels.HandleConfig{})
			mu.Lock()
			defer mu.Unlock()
			fmt.Fprintf(out, "pod %d has billed %d orders\n", pod+1, mine)
		})
	}
	running.Wait()
	fmt.Fprintf(out, "together %d of %d\n", total, len(all))
	for range 3 {
		if err := <-errs; err != nil {
			return err
		}
	}
	return nil
}
