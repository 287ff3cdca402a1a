package tests

import (
	"encoding/json"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// invoice has the names that a .NET service writes: as they are declared.
type invoice struct {
	ID       string `json:"Id"`
	Amount   float64
	Customer *customer
	Lines    []string
}

type customer struct{ Name string }

// Entries of the .NET library, written by hand in its layout: XADD key MAXLEN ~ n * data json,
// names in PascalCase, null for unset members, characters other than ASCII as \u escapes.
func TestChannel_ReadsDotNetEntries(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	invoices := streamOf[invoice](t, hub, key, flaminco)
	var ids []string
	for _, data := range []string{
		`{"Id":"7f1c","Amount":12.50,"Customer":{"Name":"M\u00FCller \u0026 S\u00F6hne"},"Lines":["a","b"]}`,
		`{"Id":"","Amount":0,"Customer":null,"Lines":[]}`,
		`{"Id":"x","Amount":1E+3,"Customer":null,"Lines":null,"AddedLater":true}`,
	} {
		id, err := hub.client.XAdd(t.Context(), &redis.XAddArgs{Stream: key, MaxLen: 1000, Approx: true, Values: []string{"data", data}}).Result()
		require.NoError(t, err)
		ids = append(ids, id)
	}
	want := []invoice{
		{ID: "7f1c", Amount: 12.5, Customer: &customer{"Müller & Söhne"}, Lines: []string{"a", "b"}},
		{Lines: []string{}},
		{ID: "x", Amount: 1000},
	}
	for i := range want {
		d := receiveValue(t, invoices)
		require.Equal(t, want[i], d.Value)
		require.Equal(t, ids[i], d.ID)
		require.NoError(t, d.Ack())
	}
}

// An entry for .NET has one field `data` that its serializer reads, and two that it ignores.
func TestChannel_WritesDotNetEntries(t *testing.T) {
	t.Parallel()
	hub, key := newHubOf(t), redistest.Key(t)
	config := flaminco
	config.Publisher.Retention = redischannels.Retention{MaxLen: 100}
	invoices := streamOf[invoice](t, hub, key, config)
	write(t, invoices, invoice{ID: "7f1c", Amount: 2, Customer: &customer{"Müller"}})
	entries, err := hub.client.XRange(t.Context(), key, "-", "+").Result()
	require.NoError(t, err)
	require.JSONEq(t, `{"Id":"7f1c","Amount":2,"Customer":{"Name":"Müller"},"Lines":null}`, entries[0].Values["data"].(string))
	for name := range entries[0].Values {
		require.Contains(t, []string{"data", "_watermill_message_uuid", "metadata"}, name)
	}
}

// Over Pub/Sub .NET publishes the bare JSON text, and reads it.
func TestChannel_DotNetPubSub(t *testing.T) {
	t.Parallel()
	hub, name := newHubOf(t), redistest.Key(t)
	c, err := redischannels.NewPubSubChannel[invoice](hub.Hub, name, redischannels.PubSubChannelConfig{Format: redischannels.RawPayload{}})
	require.NoError(t, err)
	_, _, err = c.Reader().TryReceive()
	require.NoError(t, err)
	require.NoError(t, hub.client.Publish(t.Context(), name, `{"Id":"1","Amount":3,"Customer":null,"Lines":null}`).Err())
	v, err := c.Reader().Read(soonCtx(t))
	require.NoError(t, err)
	require.Equal(t, invoice{ID: "1", Amount: 3}, v)

	foreign := hub.client.Subscribe(t.Context(), name)
	defer foreign.Close()
	_, err = foreign.Receive(soonCtx(t))
	require.NoError(t, err)
	_, err = c.Writer().Write(t.Context(), v)
	require.NoError(t, err)
	msg, err := foreign.ReceiveMessage(soonCtx(t))
	require.NoError(t, err)
	require.JSONEq(t, `{"Id":"1","Amount":3,"Customer":null,"Lines":null}`, msg.Payload)
	require.True(t, json.Valid([]byte(msg.Payload)))
}
