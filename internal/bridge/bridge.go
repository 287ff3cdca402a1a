// Package bridge gives the other packages of this module what they need of the root package
// and users do not. The root package sets it when it is initialized.
package bridge

import (
	"context"

	"github.com/flaminco/redischannels/internal/stream"
)

// Follow returns the loop of Reader.Follow from Latest of a *Reader[T], an
// iter.Seq2[Delivery[T], error]. live is called once, before the first delivery, when what is
// written from then on will come; start is the ID after which the loop begins, zero where the
// transport has none.
var Follow func(ctx context.Context, reader any, live func(start stream.ID)) any
