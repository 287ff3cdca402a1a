package main

import (
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/flaminco/redischannels"
)

// notify sends to all that listen at this moment. Nothing is kept: who comes later has
// missed it.
func notify(ctx context.Context, hub *redischannels.Hub, key string, out io.Writer) error {
	type heard struct {
		name, note string
		err        error
	}
	all := make(chan heard, 2)
	ctx, stop := context.WithCancel(ctx)
	var listening sync.WaitGroup
	defer listening.Wait()
	defer stop()
	for _, name := range []string{"screen", "mailer"} {
		notes, err := redischannels.NewPubSubChannel[string](hub, key, redischannels.PubSubChannelConfig{})
		if err != nil {
			return err
		}
		// It is subscribed when the first use of the reader returns.
		if _, _, err := notes.Reader().TryReceive(); err != nil {
			return err
		}
		listening.Go(func() {
			note, err := notes.Reader().Read(ctx)
			all <- heard{name, note, err}
		})
	}
	notes, err := redischannels.NewPubSubChannel[string](hub, key, redischannels.PubSubChannelConfig{})
	if err != nil {
		return err
	}
	if _, err := notes.Writer().Write(ctx, "order 7 was shipped"); err != nil {
		return err
	}
	for range 2 {
		h := <-all
		if h.err != nil {
			return h.err
		}
		fmt.Fprintf(out, "%s: %s\n", h.name, h.note)
	}
	return nil
}
