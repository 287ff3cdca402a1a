// Command orders imports orders from a CSV file through Redis Streams: it publishes each row as
// a message and lets a Watermill router with two consumers of one consumer group handle them.
// Rows that fail for a moment are retried, rows that no retry can help become dead letters with
// a reason, and the summary at the end accounts for every row.
//
//	go run ./examples/orders              # the sample that ships with it
//	go run ./examples/orders orders.csv   # a file
//	go run ./examples/orders -            # standard input
//
// It needs no Redis: an embedded server lives as long as the program. With REDIS_URL, such as
// redis://localhost:6379/0, it uses a real one, and then it can be killed at any moment and
// restarted with the same arguments: it resumes where it was, and the summary is the same.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/examples/internal/redisserver"
)

// Exit codes.
const (
	exitOK          = 0
	exitFailed      = 1 // the import failed, or its summary does not add up
	exitUsage       = 2
	exitInterrupted = 130
)

// embeddedRows is up to where the embedded server is fast enough.
const embeddedRows = 10_000

// command is the program with all that it takes from its surroundings.
type command struct {
	args           []string // without the program's name
	stdin          io.Reader
	stdout, stderr io.Writer
	redisURL       string
}

func main() {
	redis.SetLogger(quiet{}) // of its pool; what matters comes as errors and events
	os.Exit(command{os.Args[1:], os.Stdin, os.Stdout, os.Stderr, os.Getenv("REDIS_URL")}.run())
}

type quiet struct{}

func (quiet) Printf(context.Context, string, ...any) {}

// run returns the exit code.
func (c command) run() int {
	flags := flag.NewFlagSet("orders", flag.ContinueOnError)
	flags.SetOutput(c.stderr)
	flags.Usage = func() {
		fmt.Fprint(c.stderr, "Usage: orders [flags] [file.csv | -]\n\n"+
			"Imports orders from a CSV file, or standard input (-), through Redis Streams.\n"+
			"Without a file it takes a sample. REDIS_URL names a real server.\n\n")
		flags.PrintDefaults()
	}
	topic := flags.String("topic", "orders", "`prefix` of the stream's name; another one starts the same file from its beginning")
	slow := flags.Duration("slow", 0, "extra `time` to handle an order, so that there is time to watch and to kill")
	verbose := flags.Bool("v", false, "write Watermill's log to standard error")
	switch err := flags.Parse(c.args); {
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err != nil:
		return exitUsage
	}
	switch {
	case flags.NArg() > 1:
		fmt.Fprintf(c.stderr, "orders: one file at a time, got %d; flags stand before it\n", flags.NArg())
		return exitUsage
	case *topic == "" || strings.ContainsAny(*topic, "{}"):
		fmt.Fprintln(c.stderr, "orders: -topic must not be empty and must not contain braces")
		return exitUsage
	case *slow < 0:
		fmt.Fprintln(c.stderr, "orders: -slow must not be negative")
		return exitUsage
	}

	// The input comes first, since reading standard input may take until the user ends it: up to
	// here Ctrl-C simply kills.
	in, err := openInput(flags.Arg(0), c.stdin)
	if err != nil {
		fmt.Fprintf(c.stderr, "orders: %v\n", err)
		return exitFailed
	}
	defer in.close()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second Ctrl-C kills

	client, words, closeRedis, err := redisserver.Open(ctx, c.redisURL)
	if err != nil {
		fmt.Fprintf(c.stderr, "orders: %v\n", err)
		return exitFailed
	}
	defer closeRedis()

	imp := &importer{
		client: client,
		in:     in,
		names:  newNames(*topic, in.id),
		out:    newScreen(c.stdout),
		logger: watermill.NopLogger{},
		slow:   *slow,
	}
	if *verbose {
		imp.logger = watermill.NewStdLoggerWithOut(c.stderr, false, false)
	}
	imp.out.printf("%d rows in %s, import %s", in.rows, in.name, in.id)
	imp.out.printf("Redis: %s", words)
	if c.redisURL != "" {
		imp.tuning = restartable
	} else if imp.tuning = embedded; in.rows > embeddedRows {
		imp.out.printf("The embedded server is made for tests and slow with so many rows: better set REDIS_URL.")
	}
	imp.out.printf("Stream %s, consumer group %s, 2 consumers", imp.names.topic, group)

	err = imp.run(ctx)
	switch {
	case err == nil:
		return exitOK
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		if c.redisURL != "" {
			imp.out.printf("Interrupted. The same command goes on from here.")
		} else {
			imp.out.printf("Interrupted. The embedded server has ended with all it had; with REDIS_URL the same command would resume here.")
		}
		return exitInterrupted
	default:
		fmt.Fprintf(c.stderr, "orders: %v\n", err)
		return exitFailed
	}
}
