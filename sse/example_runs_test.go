package sse_test

import (
	"bufio"
	"context"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"time"

	"github.com/alicebob/miniredis/v2"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/sse"
	"github.com/flaminco/redischannels/ws"
)

// The answer of a model, word by word: every viewer sees each word once and in order, also
// after a reload, at another replica, or when it is complete.
func ExampleRuns() {
	redis, err := miniredis.Run() // stands for redis://localhost:6379
	if err != nil {
		log.Fatal(err)
	}
	defer redis.Close()
	ctx := context.Background()
	hub, err := redischannels.Open(ctx, "redis://"+redis.Addr(), redischannels.HubConfig{})
	if err != nil {
		log.Fatal(err)
	}
	defer hub.Close()

	runs, err := sse.NewRuns[string](hub, sse.RunsConfig{TTL: time.Hour, WriterLease: 10 * time.Second})
	if err != nil {
		log.Fatal(err)
	}
	answers, err := runs.Handler(sse.RunsOptions[string]{})
	if err != nil {
		log.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /runs/{id}", answers)
	mux.HandleFunc("DELETE /runs/{id}", func(w http.ResponseWriter, r *http.Request) {
		if err := runs.Stop(r.Context(), r.PathValue("id")); err != nil {
			http.Error(w, "not running", http.StatusConflict)
		}
	})

	sockets, err := ws.NewHandler(answers, ws.Options{})
	if err != nil {
		log.Fatal(err)
	}
	mux.Handle("GET /runs/{id}/ws", sockets)

	// The writer of the answer, a goroutine of the replica that received the question.
	answer := func() error {
		run, err := runs.Start(ctx, "chat-42") // sse.ErrRunning: another one is being written
		if err != nil {
			return err
		}
		for _, word := range []string{"Hello, ", "world!"} {
			if err := run.Write(run.Context(), word); err != nil { // ends when the run is stopped
				return run.End(ctx, err)
			}
		}
		return run.End(ctx, nil)
	}
	if err := answer(); err != nil {
		log.Fatal(err)
	}

	server := httptest.NewServer(mux)
	defer server.Close()
	defer answers.Close()
	response, err := http.Get(server.URL + "/runs/chat-42")
	if err != nil {
		log.Fatal(err)
	}
	defer response.Body.Close()
	for lines := bufio.NewScanner(response.Body); lines.Scan(); {
		if line := lines.Text(); strings.HasPrefix(line, "data:") && !strings.Contains(line, `"started"`) {
			fmt.Println(line)
		}
	}
	// Output:
	// data: "Hello, "
	// data: "world!"
	// data: {"status":"done"}
}
