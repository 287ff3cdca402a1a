package promchannels_test

import (
	"context"
	"log"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/inspect"
	"github.com/flaminco/redischannels/promchannels"
)

// The messages of all channels of a hub are counted, and the state of all topics is read from Redis.
func Example() {
	metrics, err := promchannels.NewMetrics(promchannels.Config{})
	if err != nil {
		log.Fatal(err)
	}
	hub, err := redischannels.Open(context.Background(), "redis://localhost:6379", redischannels.HubConfig{
		Instrumentation: metrics, OnEvent: metrics.OnEvent,
	})
	if err != nil {
		log.Fatal(err)
	}
	defer hub.Close()
	inspector, err := inspect.New(inspect.Config{Client: hub.Client()}, nil)
	if err != nil {
		log.Fatal(err)
	}
	collector, err := promchannels.NewCollector(promchannels.CollectorConfig{Inspector: inspector})
	if err != nil {
		log.Fatal(err)
	}
	defer collector.Close()
	prometheus.MustRegister(metrics, collector)
}
