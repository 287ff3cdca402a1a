package redischannels_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/health"
	"github.com/flaminco/redischannels/inspect"
)

// serveHealth serves the probes of a process, and the backlog of its group.
func serveHealth(mux *http.ServeMux, client *redis.Client, subscriber *redischannels.Subscriber) (stop func(), err error) {
	ready, err := health.Ready(health.ReadyConfig{
		Client: client, Subscriptions: []health.Subscriptions{subscriber}, Want: 1,
	})
	if err != nil {
		return nil, err
	}
	inspector, err := inspect.New(inspect.Config{Client: client}, logger)
	if err != nil {
		return nil, err
	}
	backlog, err := health.NewBacklog(health.BacklogConfig{
		Inspector: inspector,
		Groups:    []health.Group{{Topic: "orders", Group: "billing"}},
	})
	if err != nil {
		return nil, err
	}
	mux.HandleFunc("GET /livez", health.Live)
	mux.Handle("GET /readyz", ready)
	mux.Handle("GET /backlog", backlog)
	return func() {
		_ = ready.Close()
		_ = backlog.Close()
	}, nil
}

// logJSON returns the configuration of a hub that logs by slog, for example with slog.NewJSONHandler.
func logJSON(logger *slog.Logger) redischannels.HubConfig {
	return redischannels.HubConfig{
		Logger: watermill.NewSlogLogger(logger),
		OnEvent: func(e redischannels.Event) {
			if e.Kind == redischannels.EventDeadLettered {
				logger.Warn("a message needs a look", "event", e) // its kind and its error are text
			}
		},
	}
}

// The probes of a process whose subscription is live.
func Example_health() {
	client, stop := exampleServer()
	defer stop()
	subscriber, err := redischannels.NewSubscriber(redischannels.SubscriberConfig{Client: client, ConsumerGroup: "billing"}, logger)
	if err != nil {
		log.Fatal(err)
	}
	defer subscriber.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if _, err := subscriber.Subscribe(ctx, "orders"); err != nil {
		log.Fatal(err)
	}
	mux := http.NewServeMux()
	stopHealth, err := serveHealth(mux, client, subscriber)
	if err != nil {
		log.Fatal(err)
	}
	defer stopHealth()
	for _, path := range []string{"/livez", "/readyz"} {
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		fmt.Print(path, " ", w.Code, " ", w.Body)
	}
	// Output:
	// /livez 200 {"live":true}
	// /readyz 200 {"ready":true}
}

// Events and errors are text in JSON.
func Example_slog() {
	config := logJSON(slog.New(slog.NewJSONHandler(os.Stdout, &slog.HandlerOptions{
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		},
	})))
	config.OnEvent(redischannels.Event{
		Kind: redischannels.EventDeadLettered, Topic: "orders", Group: "billing", EntryIDs: []string{"1700000000000-0"},
		Err: errors.New("no such customer"),
	})
	// Output: {"level":"WARN","msg":"a message needs a look","event":{"kind":"dead-lettered","topic":"orders","consumer_group":"billing","entries":["1700000000000-0"],"err":"no such customer"}}
}
