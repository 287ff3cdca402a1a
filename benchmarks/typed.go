package main

import (
	"context"
	"encoding/json"
	"errors"
	"strings"

	"github.com/flaminco/redischannels"
)

// documentSize is that of the JSON text of a document.
const documentSize = 200

// document is what the row of typed reading carries.
type document struct {
	UUID     string
	Customer string
	Amount   float64
	Paid     bool
	Tags     []string
	Note     string
}

// documentFields are the fields of message i in the wire format of the default marshaler.
func documentFields(i int) []any {
	d := document{UUID: uuid(i), Customer: "customer-4711", Amount: 1234.5, Paid: true, Tags: []string{"urgent", "export", "2026"}}
	text, _ := json.Marshal(d) // it cannot fail
	d.Note = strings.Repeat("n", documentSize-len(text))
	text, _ = json.Marshal(d)
	return []any{"_watermill_message_uuid", uuid(i), "metadata", "", "payload", text}
}

// typedRead reads values in a loop, which acknowledges each when it comes back.
func typedRead(t *trial) error {
	if err := t.fillWith(documentFields); err != nil {
		return err
	}
	hub, err := redischannels.NewHub(t.connect(), redischannels.HubConfig{OnEvent: t.event})
	if err != nil {
		return err
	}
	documents, err := redischannels.NewStreamChannel[document](hub, t.topic, redischannels.StreamChannelConfig{
		Subscriber: redischannels.SubscriberConfig{ConsumerGroup: group},
	})
	if err != nil {
		return err
	}
	if err := t.start(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(t.ctx)
	defer cancel()
	n := 0
	for d, err := range documents.Reader().All(ctx) {
		if err != nil {
			return errors.Join(err, hub.Close())
		}
		t.countOne(d.UUID, documentSize)
		if n++; n == t.n {
			cancel() // and the loop acknowledges the last one before it ends
		}
	}
	return errors.Join(t.awaitAll(), t.awaitSettled(), t.stop(), hub.Close(), t.check(true))
}

// untypedRead is the subscriber below it, with the same entries.
func untypedRead(t *trial) error {
	if err := t.fillWith(documentFields); err != nil {
		return err
	}
	return ours.subscribeFilled(t, 1)
}
