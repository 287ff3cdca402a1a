package tail

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/redistest"
	"github.com/flaminco/redischannels/internal/stream"
)

// taken is a Sink that keeps the IDs of what it is given.
type taken []string

func (*taken) Room(entries []stream.Entry) int { return len(entries) }

func (s *taken) Put(page Page) {
	for i := range page.Entries {
		*s = append(*s, page.Entries[i].Text)
	}
}

// A follower whose last page was newer than what the shared reader waits for has joined: that read returns
// entries which this follower has.
func TestFollower_AheadOfTheSharedReader(t *testing.T) {
	t.Parallel()
	entry := func(ms uint64) stream.Entry {
		id := stream.ID{Ms: ms}
		return stream.Entry{ID: id, Text: id.String()}
	}
	sink := new(taken)
	f := &Follower{sink: sink, cursor: stream.Cursor{ID: stream.ID{Ms: 5}}}
	require.True(t, f.deliver([]stream.Entry{entry(4), entry(5)}, nil))
	require.Empty(t, *sink)
	require.True(t, f.deliver([]stream.Entry{entry(4), entry(5), entry(6)}, nil))
	require.Equal(t, taken{"6-0"}, *sink)
	require.Equal(t, stream.ID{Ms: 6}, f.At())
}

// Entries that the shared reader has delivered are deleted. A follower that comes later cannot reach that
// place by reading, and read the stream forever without joining.
func TestFollower_JoinsBehindDeletedEntries(t *testing.T) {
	t.Parallel()
	h := newHarness(t, redistest.Shared(t))
	topic := redistest.Key(t)
	first, _ := h.pager(t, topic, latest, 10)
	pages := live(t, first)
	h.blocked(t, 1)
	for _, id := range []string{"1-0", "2-0"} {
		add(t, h.client, topic, id, id)
	}
	for n := 0; n < 2; {
		n += len(receive(t, pages).Entries)
	}
	require.NoError(t, h.client.XDel(t.Context(), topic, "2-0").Err())
	late, _ := h.pager(t, topic, after(stream.ID{}), 10)
	lates := live(t, late)
	require.Len(t, receive(t, lates).Entries, 1)
	redistest.Eventually(t, soon, func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		return len(h.topics[topic].members) == 2
	}, "it has joined")
	add(t, h.client, topic, "3-0", "3")
	require.Len(t, receive(t, lates).Entries, 1)
}
