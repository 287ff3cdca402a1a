// Package live lets who follows a channel know when the subscription is live: what is
// published from then on arrives.
package live

import "context"

type key struct{}

// Tell returns a context for Reader.Follow that calls told once the subscription is live.
func Tell(ctx context.Context, told func()) context.Context {
	return context.WithValue(ctx, key{}, told)
}

// Told returns the function of [Tell], or nil.
func Told(ctx context.Context) func() {
	told, _ := ctx.Value(key{}).(func())
	return told
}
