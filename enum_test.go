package redischannels

import (
	"bytes"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// enumOf checks the values from first on, as many as have a name, and returns these.
func enumOf[E ~uint8, P interface {
	*E
	encoding.TextUnmarshaler
}](t *testing.T, first E, n int) {
	t.Helper()
	seen := map[string]bool{}
	for i := range n {
		value := first + E(i)
		name := fmt.Sprint(value)
		require.False(t, seen[name], name)
		seen[name] = true
		data, err := json.Marshal(map[string]E{"x": value})
		require.NoError(t, err)
		require.JSONEq(t, `{"x":"`+name+`"}`, string(data))
		var back map[string]E
		require.NoError(t, json.Unmarshal(data, &back))
		require.Equal(t, value, back["x"])
	}
	var none E
	for _, text := range []string{"", "wrong", fmt.Sprint(first + E(n))} {
		require.ErrorIs(t, P(&none).UnmarshalText([]byte(text)), ErrInvalidArgument, "%T has a name for %s", none, text)
	}
	require.ErrorContains(t, P(&none).UnmarshalText([]byte("wrong")), `"`+fmt.Sprint(first)+`"`)
	require.Contains(t, fmt.Sprint(E(200)), " 200")
}

// A log in JSON had numbers in place of names.
func TestEnums_Text(t *testing.T) {
	t.Parallel()
	enumOf[EventKind](t, EventDisconnected, len(eventKindNames)-1)
	enumOf[Outcome](t, OutcomeNotAppended, len(outcomeNames))
	enumOf[SubscriptionState](t, StateLive, len(subscriptionStateNames)-1)
	enumOf[RequeueOutcome](t, RequeueDone, len(requeueOutcomeNames)-1)
	enumOf[ProcessOutcome](t, ProcessAcked, len(processOutcomeNames)-1)
	enumOf[DropPolicy](t, DropOldest, len(dropPolicyNames))
	enumOf[UnknownPolicy](t, RejectUnknown, len(unknownPolicyNames))
	for i, outcome := range requeueOutcomes {
		require.Equal(t, RequeueOutcome(i)+RequeueDone, outcome)
	}
}

// The error of an event was {} in JSON.
func TestEvent_JSON(t *testing.T) {
	t.Parallel()
	event := Event{
		Kind: EventDeadLettered, Topic: "orders", Group: "billing", Consumer: "c", EntryIDs: []string{"1-0"},
		Count: 1, Position: "2-0", Duration: time.Second, Err: fmt.Errorf("given up: %w", ErrNotOwner),
	}
	require.False(t, hasZeroField(event))
	data, err := json.Marshal(event)
	require.NoError(t, err)
	require.JSONEq(t, `{"Kind":"dead-lettered","Topic":"orders","Group":"billing","Consumer":"c","EntryIDs":["1-0"],"Count":1,
		"Position":"2-0","Duration":1000000000,"Err":"given up: entry is no longer owned by this consumer"}`, string(data))
	data, err = json.Marshal(&Event{Kind: EventGap})
	require.NoError(t, err)
	require.NotContains(t, string(data), "Err")

	data, err = json.Marshal(&PublishError{Topic: "orders", Results: []PublishResult{{UUID: "u", Outcome: OutcomeUnknown, Err: errors.New("cut")}}})
	require.NoError(t, err)
	require.JSONEq(t, `{"Topic":"orders","Results":[{"Index":0,"UUID":"u","EntryID":"","Outcome":"unknown","Err":"cut"}]}`, string(data))

	var written bytes.Buffer
	logger := slog.New(slog.NewJSONHandler(&written, nil))
	logger.Info("x", "event", event, "state", StateLive)
	var line map[string]any
	require.NoError(t, json.Unmarshal(written.Bytes(), &line))
	require.Equal(t, map[string]any{
		"kind": "dead-lettered", "topic": "orders", "consumer_group": "billing", "consumer": "c", "entries": []any{"1-0"},
		"count": 1.0, "position": "2-0", "duration": 1e9, "err": event.Err.Error(),
	}, line["event"])
	require.Equal(t, "live", line["state"])
	require.Equal(t, reflect.TypeFor[Event]().NumField(), len(line["event"].(map[string]any)), "one field for each")
	require.Equal(t, "[kind=gap]", slog.AnyValue(Event{Kind: EventGap}).Resolve().String())
}

func hasZeroField(v any) bool {
	value := reflect.ValueOf(v)
	for i := range value.NumField() {
		if value.Field(i).IsZero() {
			return true
		}
	}
	return false
}
