package main

import (
	"context"
	"encoding/json"
	"errors"
	"strings"

	"github.com/flaminco/redischannels"
)

const (
	documentSize = 200 // of the JSON text of a document
	uuidStart    = len(`{"UUID":"`)
	batchSize    = 500 // of the row of batches
)

// document is the value of the rows of typed reading.
type document struct {
	UUID     string
	Customer string
	Amount   float64
	Paid     bool
	Tags     []string
	Note     string
}

// documentText is the JSON text of document i. It begins with its UUID.
func documentText(i int) []byte {
	d := document{UUID: uuid(i), Customer: "customer-4711", Amount: 1234.5, Paid: true, Tags: []string{"urgent", "export", "2026"}}
	text, _ := json.Marshal(d) // it cannot fail
	d.Note = strings.Repeat("n", documentSize-len(text))
	text, _ = json.Marshal(d)
	return text
}

// documentFields are the fields of message i in the wire format of the default marshaler.
func documentFields(i int) []any {
	return []any{"_watermill_message_uuid", uuid(i), "metadata", "", "payload", documentText(i)}
}

// textFields are the same for payloads of the usual size, which begin as a document does.
func textFields(i int) []any {
	payload := append([]byte(`{"UUID":"`), uuid(i)...)
	return []any{"_watermill_message_uuid", uuid(i), "metadata", "", "payload", append(payload, strings.Repeat("x", payloadSize-len(payload))...)}
}

// countText counts the payload of textFields or documentFields.
func (t *trial) countText(text []byte) {
	t.countOne(string(text[uuidStart:uuidStart+len(uuidPrefix)+12]), len(text))
}

// readerOf fills the topic and returns a reader of it, and what closes that.
func readerOf[T any](t *trial, fields func(i int) []any, codec redischannels.Codec) (r *redischannels.Reader[T], stop func() error, err error) {
	if err := t.fillWith(fields); err != nil {
		return nil, nil, err
	}
	hub, err := redischannels.NewHub(t.connect(), redischannels.HubConfig{OnEvent: t.event})
	if err != nil {
		return nil, nil, err
	}
	c, err := redischannels.NewStreamChannel[T](hub, t.topic, redischannels.StreamChannelConfig{
		Codec: codec, Subscriber: redischannels.SubscriberConfig{ConsumerGroup: group},
	})
	if err != nil {
		return nil, nil, err
	}
	return c.Reader(), hub.Close, nil
}

// readAll reads values in a loop, which acknowledges each when it comes back, and then does what is
// measured with it.
func readAll[T any](t *trial, fields func(i int) []any, codec redischannels.Codec, count func(T), then func() error) error {
	r, stop, err := readerOf[T](t, fields, codec)
	if err != nil {
		return err
	}
	if err := t.start(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(t.ctx)
	defer cancel()
	n := 0
	for value, err := range r.All(ctx) {
		if err != nil {
			return errors.Join(err, stop())
		}
		count(value)
		if n++; n == t.n {
			cancel() // and the loop acknowledges the last one before it ends
		}
	}
	return errors.Join(t.awaitAll(), t.awaitSettled(), then(), t.stop(), stop(), t.check(true))
}

func nothing() error { return nil }

// readTexts reads values that need no decoding.
func readTexts(t *trial) error {
	return readAll(t, textFields, redischannels.Bytes, t.countText, nothing)
}

// readDocuments reads values of JSON.
func readDocuments(t *trial) error {
	return readAll(t, documentFields, redischannels.JSON, func(d document) { t.countOne(d.UUID, documentSize) }, nothing)
}

// readAndUnmarshal reads the same without decoding, and then decodes as many, in the measured time.
func readAndUnmarshal(t *trial) error {
	return readAll(t, documentFields, redischannels.Bytes, t.countText, func() error {
		text := documentText(0)
		for range t.n {
			var d document
			if err := json.Unmarshal(text, &d); err != nil {
				return err
			}
		}
		return nil
	})
}

// handleDocuments handles values of JSON by two workers.
func handleDocuments(t *trial) error {
	return handled(t, documentFields, redischannels.JSON, func(ctx context.Context, r *redischannels.Reader[document]) error {
		return r.Handle(ctx, func(_ context.Context, d document) error {
			t.countOne(d.UUID, documentSize)
			return nil
		}, redischannels.HandleConfig{Concurrency: 2})
	})
}

// handleTexts handles batches of values that need no decoding.
func handleTexts(t *trial) error {
	return handled(t, textFields, redischannels.Bytes, func(ctx context.Context, r *redischannels.Reader[[]byte]) error {
		return r.HandleBatch(ctx, func(_ context.Context, batch []redischannels.Delivery[[]byte]) error {
			for i := range batch {
				t.countText(batch[i].Value)
			}
			return nil
		}, redischannels.BatchConfig{Size: batchSize})
	})
}

// handled runs a handler until all values are acknowledged.
func handled[T any](t *trial, fields func(i int) []any, codec redischannels.Codec, handle func(ctx context.Context, r *redischannels.Reader[T]) error) error {
	r, stop, err := readerOf[T](t, fields, codec)
	if err != nil {
		return err
	}
	if err := t.start(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(t.ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- handle(ctx, r) }()
	err = t.awaitAll()
	if err == nil {
		err = t.awaitSettled()
	}
	err = errors.Join(err, t.stop())
	cancel()
	return errors.Join(err, <-ended, stop(), t.check(true))
}

// untyped is the subscriber below, with the same entries.
func untyped(fields func(i int) []any) func(*trial) error {
	return func(t *trial) error {
		if err := t.fillWith(fields); err != nil {
			return err
		}
		return ours.subscribeFilled(t, 1)
	}
}
