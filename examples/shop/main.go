// Shop is a few services under changing load, with failures, and the console that shows them: everything of the
// library at work.
//
//	go run ./examples/shop
//
// A store takes orders in waves, billing charges them and fails now and then, the warehouse stands still for half a
// minute in every four, and mail asks for reviews a minute later, many at a time. Open the address that it prints.
//
// Without REDIS_URL it uses a redis-server of its own from PATH, or else an embedded one. ADDR is where it
// listens. Whoever reaches that address may act: it is for this machine only.
package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/console"
	"github.com/flaminco/redischannels/examples/internal/serve"
	"github.com/flaminco/redischannels/inspect"
)

func main() { serve.Main("shop", run) }

// run serves until ctx ends.
func run(ctx context.Context, client *redis.Client, listener net.Listener, out io.Writer) error {
	hub, err := redischannels.NewHub(client, redischannels.HubConfig{})
	if err != nil {
		return err
	}
	defer hub.Close()
	s, err := newShop(hub)
	if err != nil {
		return err
	}
	page, err := console.New(console.Config{
		Inspect:   inspect.Config{Client: client, Actor: "shop"},
		Authorize: func(*http.Request) (console.Access, error) { return console.Access{Act: true, Payloads: true}, nil },
	}, nil)
	if err != nil {
		return err
	}
	defer page.Close()
	fmt.Fprintf(out, "The console is at http://%s/\n", listener.Addr())
	parts := s.services()
	parts["console"] = func(ctx context.Context) error {
		<-ctx.Done()
		return page.Close() // ends the live pages
	}
	return serve.All(ctx, listener, page, parts)
}
