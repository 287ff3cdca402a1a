package otelchannels_test

import (
	"context"
	"log"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/otelchannels"
)

// All channels of the hub are observed, with the global providers of OpenTelemetry.
func Example() {
	instrumentation, err := otelchannels.New(otelchannels.Config{})
	if err != nil {
		log.Fatal(err)
	}
	hub, err := redischannels.Open(context.Background(), "redis://localhost:6379", redischannels.HubConfig{Instrumentation: instrumentation})
	if err != nil {
		log.Fatal(err)
	}
	defer hub.Close()
}
