package redischannels

import (
	"context"
	"errors"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/appender"
)

func messagesWith(contexts ...context.Context) []*message.Message {
	msgs := make([]*message.Message, len(contexts))
	for i, ctx := range contexts {
		msgs[i] = message.NewMessage("", nil)
		if ctx != nil {
			msgs[i].SetContext(ctx)
		}
	}
	return msgs
}

// Only the context of the first message ended the wait.
func TestJoinContextsEndsWithTheFirstOfThem(t *testing.T) {
	t.Parallel()
	reason := errors.New("enough")
	for ender := range 3 {
		var contexts []context.Context
		var cancels []context.CancelCauseFunc
		for range 3 {
			ctx, cancel := context.WithCancelCause(t.Context())
			contexts, cancels = append(contexts, ctx), append(cancels, cancel)
		}
		ctx, stop := joinContexts(messagesWith(append([]context.Context{nil}, contexts...)...))
		require.NoError(t, ctx.Err())
		cancels[ender](reason)
		<-ctx.Done()
		require.ErrorIs(t, context.Cause(ctx), reason)
		stop()
	}
}

// The common cases must not cost a goroutine or a context.
func TestJoinContextsKeepsASingleContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for _, contexts := range [][]context.Context{{ctx}, {ctx, ctx, ctx}, {nil, ctx, nil, ctx}} {
		joined, stop := joinContexts(messagesWith(contexts...))
		require.Equal(t, ctx, joined)
		stop()
		require.NoError(t, ctx.Err(), "stop must not end the caller's context")
	}
	joined, stop := joinContexts(messagesWith(nil, nil))
	require.Nil(t, joined.Done())
	stop()
}

// A chunk is bounded by messages and by bytes, and a message that exceeds the
// bound by itself still makes progress.
// A context may be of a type that == panics on.
func TestJoinContextsComparesNone(t *testing.T) {
	t.Parallel()
	type values struct {
		context.Context
		all map[string]string
	}
	parent, cancel := context.WithCancel(t.Context())
	ctx, stop := joinContexts(messagesWith(values{parent, nil}, values{parent, nil}, values{t.Context(), nil}))
	defer stop()
	require.NoError(t, ctx.Err())
	cancel()
	<-ctx.Done()
}

func TestChunks(t *testing.T) {
	t.Parallel()
	const large = appender.MaxBytes
	for _, c := range []struct {
		sizes []int
		want  []int // ends
	}{
		{[]int{1}, []int{1}},
		{make([]int, 500), []int{500}},
		{make([]int, 1001), []int{500, 1000, 1001}},
		{[]int{large / 2, large / 4, large / 2, 1}, []int{2, 4}},
		{[]int{1, 2 * large, 1}, []int{1, 2, 3}},
	} {
		var ends []int
		for start := 0; start < len(c.sizes); {
			end, bytes := chunk(c.sizes, start)
			require.Positive(t, bytes)
			ends = append(ends, end)
			start = end
		}
		require.Equal(t, c.want, ends)
	}
}

// A caller could not distinguish a lost reply from a refusal without parsing texts.
func TestPublishErrorMatchesAllItsCauses(t *testing.T) {
	t.Parallel()
	cause := errors.New("reset by peer")
	err := error(&PublishError{Topic: "t", Results: []PublishResult{
		publishResult(0, "a", appender.Result{Outcome: appender.Appended, ID: "1-0"}),
		publishResult(1, "b", appender.Result{Outcome: appender.UnderReplicated, ID: "1-1", Err: appender.ErrReplicas}),
		publishResult(2, "c", appender.Result{Outcome: appender.Unknown, Err: cause}),
		publishResult(3, "d", appender.Result{Outcome: appender.NotAppended, Err: appender.ErrClosed}),
		publishResult(4, "e", appender.Result{Outcome: appender.NotAppended, Err: appender.ErrClosed}),
	}})
	for _, target := range []error{ErrUnderReplicated, ErrOutcomeUnknown, ErrClosed, cause} {
		require.ErrorIs(t, err, target)
	}
	require.NotErrorIs(t, err, ErrOutOfMemory)
	require.ErrorContains(t, err, `publish to "t": 1 appended, 1 under-replicated, 2 not appended, 1 unknown of 5 messages: `)
	var pe *PublishError
	require.ErrorAs(t, err, &pe)
	require.Len(t, pe.Unwrap(), 3)
	require.Nil(t, pe.Results[0].Err)
	require.Equal(t, PublishResult{Index: 1, UUID: "b", EntryID: "1-1", Outcome: OutcomeUnderReplicated, Err: pe.Results[1].Err}, pe.Results[1])
}
