package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"

	"github.com/flaminco/redischannels"
)

// background is a service: it handles orders until it is given to end, eight at a time. An
// error brings the order again; Watermill's middleware works on typed functions too.
func background(ctx context.Context, hub *redischannels.Hub, key string, out io.Writer) error {
	orders, err := redischannels.NewStreamChannel[Order](hub, key, redischannels.StreamChannelConfig{
		Subscriber: redischannels.SubscriberConfig{ConsumerGroup: "billing"},
	})
	if err != nil {
		return err
	}
	const n = 20
	for i := range n {
		if _, err := orders.Writer().Write(ctx, Order{ID: i + 1, Amount: 10}); err != nil {
			return err
		}
	}
	serving, stop := context.WithCancel(ctx)
	defer stop()
	var tries, billed atomic.Int64
	bill := func(_ context.Context, order Order) error {
		if tries.Add(1)%4 == 0 {
			return errors.New("the bank is closed")
		}
		if billed.Add(1) == n {
			stop() // a real one runs until SIGTERM
		}
		return nil
	}
	retry := middleware.Retry{MaxRetries: 3, InitialInterval: 10 * time.Millisecond}
	err = orders.Reader().Handle(serving, bill, redischannels.HandleConfig{
		Concurrency: 8,
		Middleware:  []message.HandlerMiddleware{retry.Middleware},
	})
	fmt.Fprintf(out, "billed %d orders in %d tries\n", billed.Load(), tries.Load())
	return err
}
