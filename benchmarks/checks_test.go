package main

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"
)

// Rows of the wider groups would make the usual run last for half an hour.
func TestChosenRows(t *testing.T) {
	for _, r := range chosen(regexp.MustCompile(""), false, false) {
		require.NotContains(t, r.name, "/")
	}
	names, groups := map[string]bool{}, map[string]bool{}
	for _, r := range chosen(regexp.MustCompile(""), true, true) {
		require.False(t, names[r.name], "%s is there twice", r.name)
		names[r.name] = true
		if group, _, ok := strings.Cut(r.name, "/"); ok {
			groups[group] = true
		}
	}
	require.Len(t, groups, 8)
	for group := range groups {
		require.NotEmpty(t, chosen(regexp.MustCompile("^"+group+"/"), false, false))
	}
	require.Len(t, chosen(regexp.MustCompile("^subscribe$"), false, false), 1)
}

func TestTrialRefusesDisorderOfAKey(t *testing.T) {
	h := &harness{server: testServer(t), repetitions: 1, scale: 1, progress: t.Logf}
	_, err := h.run(t.Context(), row{name: "order", peers: []peer{{name: "order", messages: 2 * keys, run: func(tr *trial) error {
		for i := range 2 * keys {
			tr.countOne(uuid(i), payloadSize)
			tr.inOrder(uuid(2*keys - 1 - i))
		}
		return tr.check(false)
	}}}})
	require.ErrorContains(t, err, "of its key")
}

// One message that takes long to be sent delays those that its sender should have sent
// meanwhile. Taken from when they are sent, they would look as quick as ever.
func TestLatencyCountsTheWaitingOfAStall(t *testing.T) {
	const stall = 100 * time.Millisecond
	h := &harness{server: testServer(t), repetitions: 1, scale: 1, progress: t.Logf}
	stalling := func(tr *trial) (endpoints, error) {
		sent := make(chan *message.Message, tr.n)
		return endpoints{
			send: func(i int) error {
				sent <- message.NewMessage(uuid(i), tr.payload)
				if i == 2*senders { // it has arrived, but the sender hears of it late
					time.Sleep(stall)
				}
				return nil
			},
			receive: func(got func(*message.Message)) error {
				for msg := range sent {
					got(msg)
				}
				return nil
			},
			close: func() error {
				close(sent)
				return nil
			},
		}, nil
	}
	results, err := h.run(t.Context(), row{name: "stall", rate: 1000, metrics: []metric{{name: "p50"}, {name: "p99"}, {name: "p99.9"}}, peers: []peer{
		{name: "stalling", messages: 200, run: latency(stalling)},
	}})
	require.NoError(t, err)
	require.Len(t, results, 3)
	// The next message of the sender is due 16 ms after the one that stalls.
	require.GreaterOrEqual(t, results[2].Peers[0].Values[0], float64((stall - 20*time.Millisecond).Microseconds()))
}
