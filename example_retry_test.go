package redischannels_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

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

var errNoSuchCard = errors.New("no such card")

// In a router the middleware comes before all others. The error of the handler is the reason of the dead
// letter, and says whether and when the message is delivered again.
func ExampleHandlerErrors() {
	router, err := message.NewRouter(message.RouterConfig{}, nil)
	if err != nil {
		panic(err)
	}
	router.AddMiddleware(redischannels.HandlerErrors)

	handle := func(msg *message.Message) error {
		err := chargeCard(msg.Payload)
		switch {
		case errors.Is(err, errNoSuchCard):
			return redischannels.Permanent(err) // a dead letter at once
		case errors.Is(err, ErrClosedOnSundays):
			return redischannels.WithRetryAfter(err, 24*time.Hour)
		}
		return err // delivered again after NackBackoff; the last one is the reason of the dead letter
	}

	err = handle(message.NewMessage("1", nil))
	fmt.Println(err, redischannels.IsPermanent(err))
	// Output: no such card true
}

func chargeCard([]byte) error { return errNoSuchCard }
