package redischannels

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/source"
	"github.com/flaminco/redischannels/internal/stream"
)

// feedOf is a feed of these entries, which are ready when it is opened, and what takes more.
func feedOf(t *testing.T, start stream.ID, ids ...string) (f *feed, in chan *message.Message) {
	t.Helper()
	in = make(chan *message.Message, 100)
	for _, id := range ids {
		in <- entryMessage(id, 1)
	}
	f = newFeed(feedConfig{topic: "t", report: func(Event) {}, shut: func() {}})
	require.NoError(t, f.open(t.Context(), func(_ context.Context, f *feed) (<-chan *message.Message, error) {
		f.start = start
		return in, nil
	}))
	t.Cleanup(func() { _ = f.Close(context.Background()) })
	return f, in
}

// entryMessage is a message as a subscription without a group hands it over.
func entryMessage(id string, count int) *message.Message {
	msg := message.NewMessage(id, nil)
	msg.SetContext(&delivery{from: &origin{topic: "t", values: context.Background()}, id: id, count: count})
	return msg
}

// told is what the next n reads return: IDs, and gaps by the ID before them.
func told(t *testing.T, f *feed, n int) (seen []string) {
	t.Helper()
	for range n {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		got, err := f.NextBatch(ctx, nil, one)
		cancel()
		var gap *source.GapError
		switch {
		case errors.As(err, &gap):
			seen = append(seen, "gap after "+gap.After)
		case err != nil:
			seen = append(seen, err.Error())
		default:
			seen = append(seen, got[0].ID)
			require.NoError(t, got[0].End(source.Outcome{Kind: source.Ack}))
		}
	}
	return seen
}

// A gap is told behind what was before it and before what comes behind it, whatever is ready
// when, and without waiting for more. Where there is a choice the order of a select is random,
// so each case is tried often.
func TestFeedReportsGapsInTheirPlace(t *testing.T) {
	t.Parallel()
	cases := map[string]struct {
		entries []string
		gaps    []string
		want    []string
	}{
		"between":                    {[]string{"1-0", "2-0", "5-0"}, []string{"2-0"}, []string{"1-0", "2-0", "gap after 2-0", "5-0"}},
		"behind all":                 {[]string{"1-0", "2-0"}, []string{"2-0"}, []string{"1-0", "2-0", "gap after 2-0"}},
		"at the start":               {[]string{"5-0"}, []string{"0-0"}, []string{"gap after 0-0", "5-0"}},
		"alone":                      {nil, []string{"0-0"}, []string{"gap after 0-0"}},
		"with one entry between":     {[]string{"1-0", "3-0"}, []string{"1-0", "3-0"}, []string{"1-0", "gap after 1-0", "3-0", "gap after 3-0"}},
		"twice before the same":      {[]string{"1-0", "9-0"}, []string{"1-0", "5-0"}, []string{"1-0", "gap after 1-0", "gap after 5-0", "9-0"}},
		"twice, with nothing before": {[]string{"1-0", "9-0"}, []string{"3-0", "5-0"}, []string{"1-0", "gap after 3-0", "gap after 5-0", "9-0"}},
		"before a redelivered entry": {[]string{"1-0", "2-0", "1-0"}, []string{"2-0"}, []string{"1-0", "2-0", "gap after 2-0", "1-0"}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for range 30 {
				f, _ := feedOf(t, stream.ID{}, c.entries...)
				for _, asked := range c.gaps {
					f.gap(&GapError{Topic: "t", After: asked}, stream.ID{})
				}
				require.Equal(t, c.want, told(t, f, len(c.want)))
			}
		})
	}
}

// One that reading begins with is told at once, and so is one that comes while a reader waits.
func TestFeedReportsAGapWhileWaiting(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f, in := feedOf(t, stream.ID{Ms: 7})
		defer func() { _ = f.Close(context.Background()) }()
		f.gap(&GapError{After: "3-0"}, stream.ID{})
		require.Equal(t, []string{"gap after 3-0"}, told(t, f, 1))
		in <- entryMessage("8-0", 1)
		require.Equal(t, []string{"8-0"}, told(t, f, 1))
		f.gap(&GapError{After: "8-0"}, stream.ID{Ms: 20})
		require.Equal(t, []string{"gap after 8-0"}, told(t, f, 1))
		f.gap(&GapError{After: "20-0"}, stream.ID{}) // nothing was left between
		require.Equal(t, []string{"gap after 20-0"}, told(t, f, 1))
		in <- entryMessage("30-0", 1)
		require.Equal(t, []string{"30-0"}, told(t, f, 1))
		seen := make(chan []string)
		go func() { seen <- told(t, f, 1) }()
		synctest.Wait()
		f.gap(&GapError{After: "30-0"}, stream.ID{})
		require.Equal(t, []string{"gap after 30-0"}, <-seen)
	})
}
