// Package live lets who follows a channel know when the subscription is live: what is
// published from then on arrives.
package live

import (
	"context"

	"github.com/flaminco/redischannels/internal/stream"
)

type key struct{}

// Tell returns a context for Reader.Follow that calls told once the subscription is live,
// before the first message, with the ID that it begins after: zero where the transport has
// none.
func Tell(ctx context.Context, told func(start stream.ID)) context.Context {
	return context.WithValue(ctx, key{}, told)
}

// Told returns the function of [Tell], or nil.
func Told(ctx context.Context) func(start stream.ID) {
	told, _ := ctx.Value(key{}).(func(stream.ID))
	return told
}
