package main

import (
	"context"
	"fmt"
	"io"

	"github.com/flaminco/redischannels"
)

// queue sends orders and receives them. Each belongs to the loop until it comes back for the
// next; if this process died in between, another one of the group would get that order.
func queue(ctx context.Context, hub *redischannels.Hub, key string, out io.Writer) error {
	orders, err := redischannels.NewStreamChannel[Order](hub, key, redischannels.StreamChannelConfig{
		Subscriber: redischannels.SubscriberConfig{ConsumerGroup: "billing"},
	})
	if err != nil {
		return err
	}
	const n = 5
	for i := range n {
		id, err := orders.Writer().Write(ctx, Order{ID: i + 1, Amount: 10 * (i + 1)})
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "sent order %d as entry %s\n", i+1, id)
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	left := n
	for order, err := range orders.Reader().All(ctx) {
		if err != nil {
			fmt.Fprintln(out, "cannot be read:", err)
			continue
		}
		fmt.Fprintf(out, "billed order %d: %d\n", order.ID, order.Amount)
		if left--; left == 0 {
			stop() // the loop ends when it comes back, which acknowledges this one
		}
	}
	return nil
}
