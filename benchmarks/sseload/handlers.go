package main

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/sse"
)

// kind is one way to serve the clients.
type kind struct {
	name      string
	publishes bool
	// open returns a handler and what ends it.
	open func(addr string, clients int) (http.Handler, func() error, error)
}

const stream = "sseload"

var kinds = []kind{{"net/http alone", false, openBaseline}, {"sse.Handler", true, openOurs}, {"XREAD per client", true, openNaive}}

// openBaseline is what Go's HTTP server needs for a stream on which nothing is sent.
func openBaseline(string, int) (http.Handler, func() error, error) {
	ended := make(chan struct{})
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = fmt.Fprint(w, ": ready\n\n")
		_ = http.NewResponseController(w).Flush()
		select {
		case <-ended:
		case <-r.Context().Done():
		}
	})
	return handler, func() error { close(ended); return nil }, nil
}

// openOurs is the handler of this library.
func openOurs(addr string, _ int) (http.Handler, func() error, error) {
	hub, err := redischannels.Open(context.Background(), "redis://"+addr, redischannels.HubConfig{})
	if err != nil {
		return nil, nil, err
	}
	channel, err := redischannels.NewStreamChannel[message](hub, stream, redischannels.StreamChannelConfig{})
	if err != nil {
		return nil, nil, err
	}
	handler, err := sse.NewHandler(channel, sse.Options[message]{MaxClients: sse.UnlimitedClients})
	if err != nil {
		return nil, nil, err
	}
	return handler, func() error {
		_ = handler.Close() // always nil
		return hub.Close()
	}, nil
}

// openNaive is what one writes first: each client reads the stream by itself.
func openNaive(addr string, clients int) (http.Handler, func() error, error) {
	client := redis.NewClient(&redis.Options{Addr: addr, PoolSize: clients + 8, PoolTimeout: patience, ReadTimeout: patience, DialTimeout: patience})
	ctx, cancel := context.WithCancel(context.Background())
	if err := client.ConfigSet(ctx, "maxclients", fmt.Sprint(clients+100)).Err(); err != nil {
		cancel()
		return nil, nil, err
	}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		out := http.NewResponseController(w)
		w.Header().Set("Content-Type", "text/event-stream")
		last := "0-0"
		if newest, err := client.XRevRangeN(ctx, stream, "+", "-", 1).Result(); err == nil && len(newest) == 1 {
			last = newest[0].ID
		}
		_, _ = fmt.Fprint(w, ": ready\n\n")
		for out.Flush() == nil && r.Context().Err() == nil && ctx.Err() == nil {
			read, err := client.XRead(ctx, &redis.XReadArgs{Streams: []string{stream, last}, Count: 100, Block: 5 * time.Second}).Result()
			if err != nil && err != redis.Nil {
				return
			}
			for _, s := range read {
				for _, entry := range s.Messages {
					last = entry.ID
					_, _ = fmt.Fprintf(w, "id: %s\ndata: %s\n\n", entry.ID, entry.Values["payload"])
				}
			}
		}
	})
	return handler, func() error {
		cancel()
		return client.Close()
	}, nil
}
