package feed

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/flaminco/redischannels/internal/lifecycle"
	"github.com/flaminco/redischannels/internal/stream"
)

// Whatever comes and is given up: a client that is inside of the ring gets exactly what came after
// its ID in this life of the stream, and no client is inside that would miss something.
func TestRing(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		start := stream.ID{Ms: 10}
		b := newBroadcast(New(Config{
			Buffer:      rapid.IntRange(1, 8).Draw(t, "events"),
			BufferBytes: rapid.IntRange(1, 8*(eventSize+1)).Draw(t, "bytes"),
			Gap:         func(from, to string) []byte { return nil },
			Life:        lifecycle.New(ErrEnded),
		}))
		defer b.stop()
		b.ring.floor, b.ring.end = start, start
		var all []*Event // of this life, which began after birth
		birth := start
		total := uint64(0)
		for range rapid.IntRange(0, 60).Draw(t, "steps") {
			e := &Event{Wire: []byte("x")}
			switch rapid.IntRange(0, 9).Draw(t, "step") {
			case 0:
				e.Gap = true
			case 1: // the stream restarts
				e.ID = stream.ID{Ms: 1 + uint64(rapid.IntRange(0, int(b.ring.end.Ms)).Draw(t, "id"))}
			default:
				e.ID = stream.ID{Ms: b.ring.end.Ms + uint64(rapid.IntRange(1, 3).Draw(t, "distance"))}
			}
			end, life := b.ring.end, b.ring.life
			b.add(e)
			total++
			if b.ring.life != life {
				require.False(t, e.Gap)
				require.False(t, end.Less(e.ID))
				total++ // the gap that says so
				all, birth = nil, stream.ID{}
			}
			all = append(all, e)
			require.Equal(t, total, b.edge().next)
			require.LessOrEqual(t, len(b.ring.events), b.feed.config.Buffer)
		}
		for ms := range b.ring.end.Ms + 2 {
			id := stream.ID{Ms: ms}
			number, where, _ := b.locate(id)
			var after, left []*Event
			for i, e := range all {
				if id.Less(e.ID) {
					after = append(after, e)
					if uint64(len(all)-i) <= uint64(len(b.ring.events)) {
						left = append(left, e)
					}
				}
			}
			switch where {
			case ahead:
				require.Greater(t, ms, b.ring.end.Ms)
				require.Equal(t, total, number)
			case behind:
				require.True(t, id.Less(birth) || len(left) < len(after), "nothing is missing")
			case inside:
				require.False(t, id.Less(birth))
				into := make([]*Event, 100)
				n, _, ok := b.take(number, into)
				require.True(t, ok)
				require.Len(t, after, n)
				for i := range after {
					require.Same(t, after[i], into[i])
				}
			}
		}
		_, _, ok := b.take(b.ring.first, nil)
		require.True(t, ok)
		if b.ring.first > 0 {
			_, _, ok = b.take(b.ring.first-1, make([]*Event, 1))
			require.False(t, ok, "gone")
		}
	})
}

// An event for many clients is encoded once, and large events must not push out all others but
// the last.
func TestRingIsBounded(t *testing.T) {
	t.Parallel()
	r := ring{maxEvents: 3, maxBytes: 1000}
	for i := range 5 {
		r.add(&Event{Wire: []byte{byte(i)}})
	}
	require.Len(t, r.events, 3)
	r.add(&Event{Wire: []byte(strings.Repeat("x", 5000))})
	require.Len(t, r.events, 1)
	require.Equal(t, uint64(6), r.next())
}

// A gap is an event without an ID: what was read before it stays read.
func TestRing_GapDoesNotCountAsRead(t *testing.T) {
	t.Parallel()
	r := ring{maxEvents: 10, maxBytes: 1000}
	r.add(&Event{ID: stream.ID{Ms: 5}, Last: true})
	r.add(&Event{Gap: true})
	require.Equal(t, stream.ID{Ms: 5}, r.end)
	require.True(t, r.ended)
	_, where := r.locate(stream.ID{Ms: 5})
	require.Equal(t, inside, where, "a client that has read all is not ahead")
}
