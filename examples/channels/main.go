// Channels shows the typed channels by small programs, one per file: what sends, what
// receives, and what becomes of a value that was not acknowledged.
//
//	go run ./examples/channels            # lists them
//	go run ./examples/channels queue
//
// Each ends by itself, or by Ctrl-C. Without REDIS_URL they use an embedded server.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/examples/internal/redisserver"
)

// Order is the value that the programs send.
type Order struct {
	ID     int
	Amount int
}

// program is one of the examples. It gets a hub of its own, a name that nothing else in
// Redis has, and where to print.
type program struct {
	name, does string
	run        func(ctx context.Context, hub *redischannels.Hub, key string, out io.Writer) error
}

var programs = []program{
	{"queue", "one sends, one of a group receives", queue},
	{"background", "a service that handles values, with a middleware that retries", background},
	{"pods", "three pods of one group share the work", pods},
	{"manual", "acknowledge, try again, give up", manual},
	{"notify", "Pub/Sub: all that listen now", notify},
	{"replay", "read again what was, and continue with new values", replay},
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Getenv("REDIS_URL"), os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "channels:", err)
		os.Exit(1)
	}
}

// run runs the program that args name.
func run(ctx context.Context, redisURL string, args []string, out io.Writer) error {
	if len(args) == 0 {
		fmt.Fprintln(out, "go run ./examples/channels NAME, which is one of")
		for _, p := range programs {
			fmt.Fprintf(out, "  %-11s %s\n", p.name, p.does)
		}
		return nil
	}
	for _, p := range programs {
		if p.name == args[0] && len(args) == 1 {
			return p.start(ctx, redisURL, out)
		}
	}
	return fmt.Errorf("there is no program %q; without arguments all are listed", args)
}

func (p program) start(ctx context.Context, redisURL string, out io.Writer) error {
	client, words, closeRedis, err := redisserver.Open(ctx, redisURL)
	if err != nil {
		return err
	}
	defer closeRedis()
	fmt.Fprintf(out, "Redis: %s\n", words)
	hub, err := redischannels.NewHub(client, redischannels.HubConfig{})
	if err != nil {
		return err
	}
	key := fmt.Sprintf("{channels-%s-%d}", p.name, os.Getpid())
	err = p.run(ctx, hub, key, out)
	if ctx.Err() != nil {
		err = nil // Ctrl-C is a way to end
	}
	closed := hub.Close()
	cleaned := client.Del(context.WithoutCancel(ctx), key, key+":dead", key+":control", key+":return:billing").Err()
	return errors.Join(err, closed, cleaned)
}
