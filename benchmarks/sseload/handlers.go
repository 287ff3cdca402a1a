package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/sse"
)

// kind is one way to serve the clients.
type kind struct {
	name    string
	streams int // over which the clients are spread
	open    func(addr string, clients int) (*opened, error)
}

// opened is a handler for clients.
type opened struct {
	handler http.Handler
	write   func(context.Context, message) error // to all streams; nil: nothing is written
	end     func() error
}

const (
	stream = "sseload"
	many   = 100 // streams
	naive  = "XREAD per client"
)

var kinds = []kind{
	{"net/http alone", 1, openBaseline},
	{"sse.Handler", 1, func(addr string, _ int) (*opened, error) { return openOurs(addr, 1) }},
	{naive, 1, openNaive},
	{"sse.Handler, 100 streams", many, func(addr string, _ int) (*opened, error) { return openOurs(addr, many) }},
	{"sse.RunsHandler, 100 runs", many, openRuns},
}

// openBaseline measures the cost of Go's HTTP server for a stream without events.
func openBaseline(string, int) (*opened, error) {
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
	return &opened{handler: handler, end: func() error { close(ended); return nil }}, nil
}

// channels are streams of one hub.
type channels struct {
	*redischannels.Hub
	all []*redischannels.Channel[message]
}

func openChannels(addr string, n int) (*channels, error) {
	hub, err := redischannels.Open(context.Background(), "redis://"+addr, redischannels.HubConfig{})
	if err != nil {
		return nil, err
	}
	c := &channels{Hub: hub}
	for i := range n {
		channel, err := redischannels.NewStreamChannel[message](hub, stream+streamPath(i), redischannels.StreamChannelConfig{})
		if err != nil {
			return nil, err
		}
		c.all = append(c.all, channel)
	}
	return c, nil
}

// write writes to all of them.
func (c *channels) write(ctx context.Context, m message) error {
	for _, channel := range c.all {
		if _, err := channel.Writer().Write(ctx, m); err != nil {
			return err
		}
	}
	return nil
}

// streamPath is the path of the URL of a stream.
func streamPath(i int) string { return fmt.Sprint("/", i) }

// openOurs is the handler of this library, one for each stream.
func openOurs(addr string, streams int) (*opened, error) {
	channels, err := openChannels(addr, streams)
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	var handlers []*sse.Handler[message]
	for i, channel := range channels.all {
		handler, err := sse.NewHandler(channel, sse.Options[message]{MaxClients: sse.UnlimitedClients})
		if err != nil {
			return nil, err
		}
		mux.Handle(streamPath(i), handler)
		handlers = append(handlers, handler)
	}
	return &opened{mux, channels.write, func() error {
		for _, handler := range handlers {
			_ = handler.Close() // always nil
		}
		return channels.Close()
	}}, nil
}

// openRuns is the handler of runs, which are all written at the same rate.
func openRuns(addr string, _ int) (*opened, error) {
	ctx := context.Background()
	hub, err := redischannels.Open(ctx, "redis://"+addr, redischannels.HubConfig{})
	if err != nil {
		return nil, err
	}
	answers, err := sse.NewRuns[message](hub, sse.RunsConfig{})
	if err != nil {
		return nil, err
	}
	handler, err := answers.Handler(sse.RunsOptions[message]{
		Options: sse.Options[message]{MaxClients: sse.UnlimitedClients},
		ID:      func(r *http.Request) string { return r.URL.Path },
	})
	if err != nil {
		return nil, err
	}
	var writers []*sse.Run[message]
	for i := range many {
		run, err := answers.Start(ctx, streamPath(i))
		if err != nil {
			return nil, err
		}
		writers = append(writers, run)
	}
	write := func(ctx context.Context, m message) error {
		for _, run := range writers {
			if err := run.Write(ctx, m); err != nil {
				return err
			}
		}
		return nil
	}
	return &opened{handler, write, func() error {
		_ = handler.Close() // always nil
		return hub.Close()
	}}, nil
}

// openNaive is the simplest implementation: each client reads the stream by itself.
func openNaive(addr string, clients int) (*opened, error) {
	channels, err := openChannels(addr, 1)
	if err != nil {
		return nil, err
	}
	client := redis.NewClient(&redis.Options{Addr: addr, PoolSize: clients + 8, PoolTimeout: patience, ReadTimeout: patience, DialTimeout: patience})
	ctx, cancel := context.WithCancel(context.Background())
	if err := client.ConfigSet(ctx, "maxclients", fmt.Sprint(clients+100)).Err(); err != nil {
		cancel()
		return nil, err
	}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		out := http.NewResponseController(w)
		w.Header().Set("Content-Type", "text/event-stream")
		last := "0-0"
		if newest, err := client.XRevRangeN(ctx, stream+streamPath(0), "+", "-", 1).Result(); err == nil && len(newest) == 1 {
			last = newest[0].ID
		}
		_, _ = fmt.Fprint(w, ": ready\n\n")
		for out.Flush() == nil && r.Context().Err() == nil && ctx.Err() == nil {
			read, err := client.XRead(ctx, &redis.XReadArgs{Streams: []string{stream + streamPath(0), last}, Count: 100, Block: 5 * time.Second}).Result()
			if err != nil && !errors.Is(err, redis.Nil) {
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
	return &opened{handler, channels.write, func() error {
		cancel()
		return errors.Join(client.Close(), channels.Close())
	}}, nil
}
