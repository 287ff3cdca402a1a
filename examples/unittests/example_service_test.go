package unittests

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/flaminco/redischannels"
)

// Order is what the service handles.
type Order struct {
	ID     int
	Amount int
}

// billing is the service under test.
type billing struct {
	out  io.Writer
	mu   sync.Mutex
	done []int
}

var errNoAmount = redischannels.Permanent(errors.New("the order has no amount"))

// bill handles one order: a function of a value, which needs no broker to be tested.
func (b *billing) bill(_ context.Context, order Order) error {
	if order.Amount <= 0 {
		return errNoAmount
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.done = append(b.done, order.ID)
	fmt.Fprintln(b.out, "billed", order.ID)
	return nil
}

// run handles the orders of a channel until ctx ends. It does not know the transport.
func (b *billing) run(ctx context.Context, orders *redischannels.Channel[Order]) error {
	return orders.Reader().Handle(ctx, b.bill, redischannels.HandleConfig{})
}

// billed returns the orders that were billed.
func (b *billing) billed() []int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.done)
}
