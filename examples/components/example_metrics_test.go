package components

import (
	"context"

	"github.com/ThreeDotsLabs/watermill/components/metrics"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/flaminco/redischannels"
)

// handleWithMetrics handles values with Watermill's own metrics of handlers.
func handleWithMetrics(ctx context.Context, orders *redischannels.Reader[PlaceOrder], fn func(context.Context, PlaceOrder) error) error {
	builder := metrics.NewPrometheusMetricsBuilder(prometheus.DefaultRegisterer, "shop", "")
	return orders.Handle(ctx, fn, redischannels.HandleConfig{
		Name:       "place-order", // the label handler_name
		Middleware: []message.HandlerMiddleware{builder.NewRouterMiddleware().Middleware},
	})
}

var _ = handleWithMetrics
