// Command sseload measures how many Server-Sent Events one process delivers to how many
// clients: package sse against a handler that reads the stream once per client, and the
// memory of both against Go's HTTP server alone.
//
// The clients are a process of their own, whose processor time is counted apart. A figure
// counts only when every client has received every message once and in order.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/flaminco/redischannels/benchmarks/internal/local"
)

// load is the measured load.
type load struct {
	clients  int
	rate     float64 // messages per second, each to all clients
	duration time.Duration
	payload  int // bytes of JSON, about
	naive    int // clients of the naive handler; 0 leaves it out
	profile  string
}

func main() {
	becomeSwarm()
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	var l load
	flag.IntVar(&l.clients, "clients", 5000, "`number` of clients")
	flag.Float64Var(&l.rate, "rate", 10, "`messages` per second, each to all clients")
	flag.DurationVar(&l.duration, "duration", 10*time.Second, "how `long` is published")
	flag.IntVar(&l.payload, "payload", 256, "`bytes` of a message")
	flag.IntVar(&l.naive, "naive", 1000, "`number` of clients of the handler with one XREAD per client; 0 leaves it out")
	flag.StringVar(&l.profile, "profile", "", "write a CPU profile of the server process with sse.Handler to this `file`")
	flag.Parse()
	if err := run(ctx, l); err != nil {
		cancel()
		fmt.Fprintln(os.Stderr, "sseload:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, l load) error {
	if l.clients < 1 || l.rate <= 0 || l.duration <= 0 || l.naive < 0 || flag.NArg() > 0 {
		return errors.New("the flags must be above 0, and there are no arguments")
	}
	results, err := measure(ctx, l, func(text string) { fmt.Fprintln(os.Stderr, text) })
	if err != nil {
		return err
	}
	return print(l, results)
}

// measure runs every kind of handler, one after the other.
func measure(ctx context.Context, l load, progress func(string)) ([]result, error) {
	if err := local.RaiseFileLimit(); err != nil {
		return nil, err
	}
	server, err := local.StartRedis(ctx)
	if err != nil {
		return nil, err
	}
	defer server.Stop()
	clients, err := startSwarm()
	if err != nil {
		return nil, err
	}
	defer clients.stop()
	var results []result
	for _, k := range kinds {
		mine := l
		if k.name == naive {
			mine.clients = l.naive
		}
		if mine.clients == 0 {
			continue
		}
		progress(fmt.Sprintf("%s: %d clients", k.name, mine.clients))
		r, err := serve(ctx, k, mine, server, clients)
		if err != nil {
			return results, fmt.Errorf("%s: %w", k.name, err)
		}
		results = append(results, r)
	}
	return results, nil
}

// print writes the table. Memory is that beyond Go's HTTP server.
func print(l load, results []result) error {
	fmt.Printf("%g messages/s of %d bytes for %v\n\n", l.rate, l.payload, l.duration)
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "handler\tclients\tmessages/s\tdeliveries/s\tp50\tp99\tmax\theap/client\tstack/client\treading connections\tCPU server\tCPU redis\tCPU clients\t")
	base := results[0]
	for i, r := range results {
		heap, stack := r.heap, r.stack
		beyond := ""
		if i > 0 {
			heap, stack, beyond = heap-base.heap, stack-base.stack, "+"
		}
		fmt.Fprintf(w, "%s\t%d\t%.1f\t%.0f\t%s\t%s\t%s\t%s%.1f KiB\t%s%.1f KiB\t%d\t%.2f\t%.2f\t%.2f\t\n", r.name, r.clients,
			r.deliveries/float64(r.clients), r.deliveries, short(r.P50), short(r.P99), short(r.Max), beyond, heap/1024, beyond, stack/1024, r.readers, r.cpu, r.redisCPU, r.clientsCPU)
	}
	fmt.Fprintln(w)
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Println("CPU is in processors in use while messages were under way. Heap and stack of the first row are those of Go's")
	fmt.Println("HTTP server, of the others what they need beyond it.")
	return nil
}

func short(d time.Duration) string {
	if d == 0 {
		return "-"
	}
	return d.Round(max(d/100, 10*time.Microsecond)).String()
}
