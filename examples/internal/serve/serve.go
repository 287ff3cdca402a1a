// Package serve is the frame of the examples that are services: an address, Redis, and parts that run until the
// process is interrupted.
package serve

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

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/examples/internal/redisserver"
)

// Program is a service. It gets a client, the address at which it listens, and a description of the server.
type Program func(ctx context.Context, client *redis.Client, listener net.Listener, out io.Writer) error

// Main runs a program until the process is interrupted. It listens at ADDR, and uses the Redis of REDIS_URL.
func Main(name string, program Program) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	listener, err := net.Listen("tcp", cmp.Or(os.Getenv("ADDR"), "localhost:8080"))
	if err == nil {
		err = Run(ctx, os.Getenv("REDIS_URL"), listener, os.Stdout, program)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(1)
	}
}

// Run runs a program until ctx ends, on the server of a URL, or an embedded one without it.
func Run(ctx context.Context, redisURL string, listener net.Listener, out io.Writer, program Program) error {
	defer listener.Close()
	client, server, closeAll, err := redisserver.Open(ctx, redisURL)
	if err != nil {
		return err
	}
	defer closeAll()
	fmt.Fprintf(out, "Redis is %s\n", server)
	return program(ctx, client, listener, out)
}

// All serves HTTP and runs the parts of a service by name, until ctx or one of them ends, and waits for all.
func All(ctx context.Context, listener net.Listener, handler http.Handler, parts map[string]func(context.Context) error) error {
	web := &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ended := make(chan error, len(parts)+1)
	run := func(name string, part func(context.Context) error) {
		err := part(ctx)
		if err != nil {
			err = fmt.Errorf("%s: %w", name, err)
		}
		cancel(err)
		ended <- err
	}
	go run("web", func(context.Context) error { return web.Serve(listener) })
	for name, part := range parts {
		go run(name, part)
	}
	<-ctx.Done()
	errs := []error{web.Close()}
	for range cap(ended) {
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
