// Reminders is a service that sends what it was asked to send, when it is time. What waits
// is stored in Redis: stop the service and start it again, and nothing is lost.
//
//	go run ./examples/reminders
//	curl -d '{"text":"tea is ready","in":"20s"}' localhost:8080/reminders
//	curl -d '{"text":"stretch","cron":"@every 10s"}' localhost:8080/reminders
//	curl localhost:8080/reminders
//	curl -X DELETE localhost:8080/reminders/ID
//
// Without REDIS_URL it uses an embedded server, which ends with it. ADDR is where it listens.
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
	"github.com/flaminco/redischannels/examples/internal/redisserver"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	listener, err := net.Listen("tcp", cmp.Or(os.Getenv("ADDR"), "localhost:8080"))
	if err == nil {
		err = run(ctx, os.Getenv("REDIS_URL"), listener, os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "reminders:", err)
		os.Exit(1)
	}
}

// run serves until ctx ends.
func run(ctx context.Context, redisURL string, listener net.Listener, out io.Writer) error {
	client, server, closeAll, err := redisserver.Open(ctx, redisURL)
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	defer closeAll()
	hub, err := redischannels.NewHub(client, redischannels.HubConfig{})
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	defer hub.Close()
	service, err := newService(hub, out)
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	defer service.schedules.Close()
	fmt.Fprintf(out, "Redis is %s\nhttp://%s/reminders\n", server, listener.Addr())

	web := &http.Server{Handler: service.handler(), ReadHeaderTimeout: 5 * time.Second}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ended := make(chan error, 3)
	for _, part := range []func() error{
		func() error { return web.Serve(listener) },
		func() error { return service.send(ctx) },
		func() error { return service.schedules.Run(ctx) },
	} {
		go func() {
			err := part()
			cancel(err) // if one ends, so do all
			ended <- err
		}()
	}
	<-ctx.Done()
	var errs []error
	errs = append(errs, web.Close())
	for range cap(ended) {
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
