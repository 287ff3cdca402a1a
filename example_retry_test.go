package redischannels_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/flaminco/redischannels"
)

var ErrClosedOnSundays = errors.New("the bank is closed on Sundays")

type bank struct{}

func (bank) Charge(context.Context, int) error { return ErrClosedOnSundays }

var payments bank

func charge(ctx context.Context, order Order) error {
	err := payments.Charge(ctx, order.ID)
	if errors.Is(err, ErrClosedOnSundays) {
		return redischannels.WithRetryAfter(err, 24*time.Hour)
	}
	return err
}

// An error with a delay: [Reader.Handle], and the middleware [HandlerErrors], have the message delivered again
// after it.
func ExampleWithRetryAfter() {
	fmt.Println(charge(context.Background(), Order{}))
	// Output: the bank is closed on Sundays
}
