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
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/console"
	"github.com/flaminco/redischannels/examples/internal/redisserver"
	"github.com/flaminco/redischannels/inspect"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	listener, err := net.Listen("tcp", cmp.Or(os.Getenv("ADDR"), "localhost:8080"))
	if err == nil {
		err = run(ctx, os.Getenv("REDIS_URL"), listener, os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "shop:", err)
		os.Exit(1)
	}
}

// run serves until ctx ends.
func run(ctx context.Context, redisURL string, listener net.Listener, out io.Writer) (err error) {
	defer listener.Close()
	client, server, closeAll, err := redisserver.Open(ctx, redisURL)
	if err != nil {
		return err
	}
	defer closeAll()
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
	fmt.Fprintf(out, "Redis is %s\nThe console is at http://%s/\n", server, listener.Addr())

	parts := s.services()
	web := &http.Server{Handler: page, ReadHeaderTimeout: 5 * time.Second}
	parts["web"] = func(context.Context) error { return web.Serve(listener) }
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ended := make(chan error, len(parts))
	for name, part := range parts {
		go func() {
			err := part(ctx)
			if err != nil {
				err = fmt.Errorf("%s: %w", name, err)
			}
			cancel(err) // if one ends, so do all
			ended <- err
		}()
	}
	<-ctx.Done()
	errs := []error{page.Close(), web.Close()}
	for range parts {
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
