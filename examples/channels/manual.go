package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/flaminco/redischannels"
)

// manual acknowledges each order by hand. One that is nacked comes again, with a delivery count;
// one that is rejected, or fails too often, moves to the dead letters.
func manual(ctx context.Context, hub *redischannels.Hub, key string, out io.Writer) error {
	orders, err := redischannels.NewStreamChannel[Order](hub, key, redischannels.StreamChannelConfig{
		Subscriber: redischannels.SubscriberConfig{ConsumerGroup: "billing", MaxDeliveries: 3},
	})
	if err != nil {
		return err
	}
	if _, err := orders.Writer().WriteAll(ctx, Order{ID: 1, Amount: 10}, Order{ID: 2, Amount: 20}, Order{ID: 3, Amount: -30}); err != nil {
		return err
	}
	for left := 3; left > 0; {
		d, err := orders.Reader().Receive(ctx)
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "order %d, delivery %d: ", d.Value.ID, d.DeliveryCount)
		switch {
		case d.Value.Amount < 0:
			fmt.Fprintln(out, "rejected, it goes to the dead letters")
			err = d.Reject("a negative amount")
			left--
		case d.Value.ID == 2 && d.DeliveryCount == 1:
			fmt.Fprintln(out, "again in 100 ms")
			err = d.NackAfter(100 * time.Millisecond)
		default:
			fmt.Fprintln(out, "acknowledged")
			err = d.Ack()
			left--
		}
		if err != nil {
			return err // another consumer has it by now
		}
	}
	return orders.Close() // when all of that is written
}
