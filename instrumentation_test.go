package redischannels

import (
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/source"
)

// Without an Instrumentation a message costs what it cost before there was one.
func TestInstrumentation_NilAllocations(t *testing.T) {
	var none *instrument
	msgs := []*message.Message{message.NewMessage("id", nil)}
	a := &source.Attempt{From: &source.Origin{Watcher: newWatcher(nil, false, nil)}}
	require.Nil(t, a.From.Watcher)
	require.Nil(t, newPublishInstrument(nil, nil))
	require.Zero(t, testing.AllocsPerRun(100, func() {
		if none.observes(msgs) {
			t.Fail()
		}
		watchOne(a, msgs[0].Metadata)
	}))
}

// What another consumer has claimed is lost, however its handler ends.
func TestInstrumentation_OutcomeOfLost(t *testing.T) {
	a := &source.Attempt{From: &source.Origin{Group: "g", MaxDeliveries: 1}, Count: 1}
	for kind, want := range map[source.Kind]ProcessOutcome{
		source.Ack: ProcessLost, source.Nack: ProcessLost, source.Release: ProcessLost, source.Reject: ProcessLost,
		source.Expire: ProcessTimedOut, source.Abandon: ProcessAbandoned, source.Withdraw: ProcessWithdrawn,
	} {
		require.Equal(t, want, endOf(a, source.Outcome{Kind: kind}, true).Outcome, "%d", kind)
	}
	require.Equal(t, ProcessDeadLettered, endOf(a, source.Outcome{Kind: source.Undecodable}, false).Outcome)
}
