package tests

import (
	"context"
	"errors"
	"iter"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/inspect"
	"github.com/flaminco/redischannels/internal/redistest"
)

// allOf returns everything that a loop yields.
func allOf[T any](t *testing.T, loop iter.Seq2[T, error]) (all []T) {
	t.Helper()
	for v, err := range loop {
		require.NoError(t, err)
		all = append(all, v)
	}
	return all
}

// errorOf returns the error that ends a loop.
func errorOf[T any](loop iter.Seq2[T, error]) error {
	for _, err := range loop {
		if err != nil {
			return err
		}
	}
	return errors.New("the loop has ended without one")
}

// A server that is silent ends every read with its context.
func TestInspect_SilentServer(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client, topic := server.Client(t), redistest.Key(t)
	inspector := newInspector(t, client)
	publish(t, client, topic, "a")
	server.Pause()
	defer server.Resume()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	for _, err := range []error{
		errorOf(inspector.Topics(ctx, inspect.TopicsQuery{})), errorOf(inspector.Groups(ctx, topic)), errorOf(inspector.Pending(ctx, topic, "g", inspect.PendingQuery{})),
		errorOf(inspector.Messages(ctx, topic, inspect.MessagesQuery{})), errorOf(inspector.Audit(ctx, topic, 0)), errorOf(inspector.Deferred(ctx, topic, "g")),
	} {
		require.ErrorContains(t, err, "redischannels/inspect: ")
	}
}
