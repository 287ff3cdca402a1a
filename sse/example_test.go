package sse_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/alicebob/miniredis/v2"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/sse"
)

// ChatMessage is the value of the example.
type ChatMessage struct {
	From, Text string
}

// A room of a chat: who enters sees the messages of the last hour, then those that are
// written, and after a lost connection those that were missed.
func ExampleHandler() {
	redis, err := miniredis.Run() // stands for redis://localhost:6379
	if err != nil {
		log.Fatal(err)
	}
	defer redis.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()

	hub, err := redischannels.Open(ctx, "redis://"+redis.Addr(), redischannels.HubConfig{})
	if err != nil {
		log.Fatal(err)
	}
	defer hub.Close()
	room, err := redischannels.NewStreamChannel[ChatMessage](hub, "chat:lobby", redischannels.StreamChannelConfig{
		Publisher: redischannels.PublisherConfig{Retention: redischannels.Retention{MaxLen: 10_000}},
	})
	if err != nil {
		log.Fatal(err)
	}
	events, err := sse.NewHandler(room, sse.Options[ChatMessage]{
		Start: func(*http.Request) redischannels.Position {
			return redischannels.Since(time.Now().Add(-time.Hour))
		},
		Event: func(redischannels.Delivery[ChatMessage]) string { return "message" },
		Authorize: func(r *http.Request) error {
			if r.URL.Query().Get("user") == "" {
				return sse.ErrUnauthorized
			}
			return nil
		},
	})
	if err != nil {
		log.Fatal(err)
	}

	mux := http.NewServeMux()
	mux.Handle("GET /events", events)
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	closed := make(chan struct{})
	server.RegisterOnShutdown(func() {
		defer close(closed)
		_ = events.Close() // always nil
	})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()

	// What a browser does with new EventSource("/events?user=ann").
	response, err := http.Get("http://" + listener.Addr().String() + "/events?user=ann")
	if err != nil {
		log.Fatal(err)
	}
	defer response.Body.Close()
	if _, err := room.Writer().Write(ctx, ChatMessage{From: "bob", Text: "hello"}); err != nil {
		log.Fatal(err)
	}
	lines := bufio.NewScanner(response.Body)
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), "event:") || strings.HasPrefix(lines.Text(), "data:") {
			fmt.Println(lines.Text())
		}
		if strings.HasPrefix(lines.Text(), "data:") {
			break
		}
	}

	if err := server.Shutdown(ctx); err != nil { // ends the streams first
		log.Fatal(err)
	}
	<-closed
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		log.Fatal(err)
	}
	// Output:
	// event: message
	// data: {"From":"bob","Text":"hello"}
}
