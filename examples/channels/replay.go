package main

import (
	"context"
	"fmt"
	"io"

	"github.com/flaminco/redischannels"
)

// replay reads a stream again from an entry on, which changes nothing for any group, and then
// continues with what is written: nothing is missing where the two meet, and nothing comes twice.
func replay(ctx context.Context, hub *redischannels.Hub, key string, out io.Writer) error {
	orders, err := redischannels.NewStreamChannel[Order](hub, key, redischannels.StreamChannelConfig{})
	if err != nil {
		return err
	}
	ids, err := orders.Writer().WriteAll(ctx, Order{ID: 1, Amount: 10}, Order{ID: 2, Amount: 20}, Order{ID: 3, Amount: 30})
	if err != nil {
		return err
	}
	for d, err := range orders.Reader().History(ctx, redischannels.Oldest) {
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "history: %s is order %d\n", d.ID, d.Value.ID)
	}
	for d, err := range orders.Reader().Follow(ctx, redischannels.AfterID(ids[0])) {
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "after %s: order %d\n", ids[0], d.Value.ID)
		switch d.Value.ID {
		case 3: // the last that was there
			if _, err := orders.Writer().Write(ctx, Order{ID: 4, Amount: 40}); err != nil {
				return err
			}
		case 4:
			return nil
		}
	}
	return nil
}
