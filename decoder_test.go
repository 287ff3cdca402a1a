package redischannels

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/stream"
)

// unmarshalFunc is an Unmarshaler.
type unmarshalFunc func(Entry) (*message.Message, error)

func (f unmarshalFunc) Unmarshal(entry Entry) (*message.Message, error) { return f(entry) }

func watermillEntry(t *testing.T, payload string) *stream.Entry {
	t.Helper()
	e := stream.NewEntry(stream.ID{Ms: 5}, []string{uuidField, "u", metadataField, "", payloadField, payload})
	return &e
}

// Bug: what an unmarshaler returned or panicked with, which may quote the payload, was a part of
// the reason, and so of logs and dead letters. The cause is for programs only.
func TestEntryDecoder_ReasonHasNothingOfThePayload(t *testing.T) {
	t.Parallel()
	for name, f := range map[string]unmarshalFunc{
		"error": func(Entry) (*message.Message, error) { return nil, errors.New(marker) },
		"panic": func(Entry) (*message.Message, error) { panic(marker) },
		"none":  func(Entry) (*message.Message, error) { return nil, nil },
	} {
		d := newEntryDecoder("orders", f, 0)
		_, messageErr := d.message(watermillEntry(t, marker))
		_, _, payloadErr := d.payload(watermillEntry(t, marker))
		for _, err := range []error{messageErr, payloadErr} {
			var failure *DecodeError
			require.ErrorAs(t, err, &failure, name)
			require.Equal(t, "5-0", failure.EntryID)
			require.Equal(t, "orders", failure.Topic)
			require.Contains(t, failure.Reason, "the unmarshaler "+map[string]string{"error": "failed", "panic": "panicked", "none": "returned"}[name])
			require.NotContains(t, err.Error(), marker)
			if name != "none" {
				require.ErrorContains(t, failure.Err, marker)
			}
		}
	}
}

// The payload of a PayloadUnmarshaler is that of its message, and needs no allocation.
func TestEntryDecoder_PayloadAllocations(t *testing.T) {
	if raceDetector {
		t.Skip("allocations are counted without the race detector")
	}
	d, e := newEntryDecoder("orders", WatermillMarshaler{}, 0), watermillEntry(t, "payload")
	require.Zero(t, testing.AllocsPerRun(1000, func() {
		if payload, metadata, err := d.payload(e); string(payload) != "payload" || metadata != nil || err != nil {
			t.Fail()
		}
	}))
}

type reversed struct{ WatermillMarshaler }

func (r reversed) Unmarshal(entry Entry) (*message.Message, error) {
	msg, err := r.WatermillMarshaler.Unmarshal(entry)
	if err == nil {
		msg.Payload = message.Payload("reversed")
	}
	return msg, err
}

type viaPointer struct{ *WatermillMarshaler }

// Bug: a format that embeds one of ours inherits its UnmarshalPayload, and its own Unmarshal was
// not asked.
func TestEntryDecoder_EmbeddedFormatIsNotBypassed(t *testing.T) {
	t.Parallel()
	for _, u := range []Unmarshaler{reversed{}, &reversed{}, viaPointer{&WatermillMarshaler{}}, struct{ Unmarshaler }{WatermillMarshaler{}}, struct{ PayloadUnmarshaler }{WatermillMarshaler{}}} {
		require.Nil(t, payloadUnmarshaler(u), "%T", u)
	}
	for _, u := range []Unmarshaler{WatermillMarshaler{}, &WatermillMarshaler{}, FlamincoMarshaler{}, FieldsMarshaler{}} {
		require.NotNil(t, payloadUnmarshaler(u), "%T", u)
	}
	payload, _, err := newEntryDecoder("orders", reversed{}, 0).payload(watermillEntry(t, "payload"))
	require.NoError(t, err)
	require.Equal(t, "reversed", string(payload))
}

// An entry that is larger than MaxPayload is not given to the Unmarshaler.
func TestEntryDecoder_MaxPayload(t *testing.T) {
	t.Parallel()
	e := watermillEntry(t, "payload")
	_, err := newEntryDecoder("orders", WatermillMarshaler{}, e.Size).message(e)
	require.NoError(t, err)
	_, _, err = newEntryDecoder("orders", WatermillMarshaler{}, e.Size-1).payload(e)
	require.ErrorContains(t, err, fmt.Sprintf("has %d bytes, more than MaxPayload %d", e.Size, e.Size-1))
}

// Bug: one lock was held over the Unmarshaler, so that several handlers decoded one after the
// other.
func TestEntryDecoder_HoldsNoLockWhileDecoding(t *testing.T) {
	t.Parallel()
	var together sync.WaitGroup
	together.Add(2)
	d := newEntryDecoder("orders", unmarshalFunc(func(entry Entry) (*message.Message, error) {
		together.Done()
		together.Wait()
		return WatermillMarshaler{}.Unmarshal(entry)
	}), 0)
	var decoders sync.WaitGroup
	for i := range 2 {
		decoders.Go(func() {
			msg, err := d.message(watermillEntry(t, fmt.Sprint(i)))
			if err != nil || string(msg.Payload) != fmt.Sprint(i) {
				t.Error(msg, err)
			}
		})
	}
	decoders.Wait()
}
