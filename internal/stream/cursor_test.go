package stream

import (
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// trimmed is a stream whose entries have the IDs 1-0, 2-0 and so on.
type trimmed struct{ added, removed uint64 }

func (s *trimmed) trim(length uint64) {
	if s.added-s.removed > length {
		s.removed = s.added - length
	}
}

func (s *trimmed) read(after uint64, limit int) []Entry {
	var entries []Entry
	for id := max(after, s.removed) + 1; id <= s.added && len(entries) < limit; id++ {
		entries = append(entries, Entry{ID: ID{Ms: id}})
	}
	return entries
}

func (s *trimmed) info() Info {
	info := Info{Last: ID{Ms: s.added}, Added: int64(s.added), Length: int64(s.added - s.removed)}
	if info.Length > 0 {
		info.First.Ms = s.removed + 1
	}
	return info
}

// Whatever is added and trimmed before and between a read and the check after it: entries
// that were missed are reported before those behind them, and nothing else is. Only where all
// that was read was removed when it looks, it may report too early.
func TestCursorReportsWhatIsMissed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := &trimmed{added: rapid.Uint64Range(0, 20).Draw(t, "before")}
		s.trim(rapid.Uint64Range(0, 20).Draw(t, "left"))
		at := rapid.SampledFrom([]uint64{0, s.added}).Draw(t, "from")
		c := NewCursor(ID{Ms: at}, ID{Ms: at}, s.info())
		if at == 0 {
			at = s.removed
		}
		change := func() {
			s.added += rapid.Uint64Range(0, 8).Draw(t, "added")
			s.trim(rapid.Uint64Range(0, 12).Draw(t, "length"))
		}
		for range rapid.IntRange(1, 12).Draw(t, "reads") {
			change()
			entries := s.read(c.ID.Ms, 5)
			change()
			info := s.info()
			next, after := s.removed+1, max(at, s.removed)
			oldest, begun := c.position == unknown && c.ID.IsZero(), c.position == unknown && !c.ID.IsZero()
			if n := len(entries); n > 0 {
				next, after = entries[0].ID.Ms, entries[n-1].ID.Ms
			}
			gap, rewound := c.Check(entries, info)
			require.False(t, rewound)
			if len(entries) > 0 && s.removed >= after && info.Last.Ms > after {
				if !oldest && !begun {
					require.Equal(t, next > at+1 || s.removed > after, gap)
				}
				require.Equal(t, after, c.ID.Ms)
				at += uint64(len(entries)) // it may be reported again
				continue
			}
			if !begun || !gap { // one that has begun at the oldest and knows no position yet may err
				require.Equal(t, !oldest && next > at+1, gap, "%d, %v behind %d", s.removed, entries, at)
			}
			if oldest && len(entries) == 0 {
				require.Zero(t, c.ID)
				continue
			}
			at = after
			require.EqualValues(t, at, c.position)
			require.Equal(t, at, c.ID.Ms)
		}
	})
}

// A check is spared only where nothing can be missing, in a stream of which every publisher
// keeps the same length.
func TestCursorDoubtful(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		length := rapid.Uint64Range(1, 12).Draw(t, "length")
		s := &trimmed{}
		c := NewCursor(ID{}, ID{}, s.info())
		for range rapid.IntRange(1, 20).Draw(t, "reads") {
			s.added += rapid.Uint64Range(0, 20).Draw(t, "added")
			s.trim(length)
			entries := s.read(c.ID.Ms, 5)
			if len(entries) == 0 {
				continue
			}
			missed := entries[0].ID.Ms > c.ID.Ms+1
			if c.Doubtful(entries, 5) {
				gap, _ := c.Check(entries, s.info())
				require.Equal(t, missed, gap)
			} else {
				require.False(t, missed)
				c.Move(entries)
			}
		}
	})
}

// A stream that is long is not checked for a few entries, however long it was once.
func TestCursorDoubtfulOnce(t *testing.T) {
	s := &trimmed{}
	c := NewCursor(ID{}, ID{}, s.info())
	looks := 0
	for range 100 {
		s.added += 2
		entries := s.read(c.ID.Ms, 5)
		if !c.Doubtful(entries, 5) {
			c.Move(entries)
			continue
		}
		looks++
		c.Check(entries, s.info())
	}
	require.Equal(t, 2, looks)
}

// Of a cursor in the middle only the entries at its place or before it show that nothing is
// missing, and a server before Redis 7 shows nothing.
func TestCursorWithoutPosition(t *testing.T) {
	s := &trimmed{added: 10}
	check := func(change func(*Info)) bool {
		info := s.info()
		change(&info)
		c := NewCursor(ID{Ms: 5}, ID{Ms: 5}, info)
		gap, rewound := c.Check(s.read(5, 3), info)
		require.False(t, rewound)
		return gap
	}
	same := func(*Info) {}
	s.trim(6)
	require.False(t, check(same), "its own entry is left")
	s.trim(5)
	require.True(t, check(same), "it is unknown that none was between")
	s.trim(3)
	require.True(t, check(same))
	require.False(t, check(func(info *Info) { info.Added = -1 }))
}

// A stream that went back is read from its beginning, one that was never there is waited for.
func TestCursorRewound(t *testing.T) {
	s := &trimmed{added: 10}
	for _, c := range []Cursor{NewCursor(ID{Ms: 11}, ID{Ms: 11}, s.info()), {ID: ID{Ms: 3}, reached: ID{Ms: 11}}} {
		gap, rewound := c.Check(nil, s.info())
		require.True(t, rewound)
		require.False(t, gap)
		require.Equal(t, NewCursor(ID{}, ID{Ms: 10}, s.info()), c)
	}
	s.trim(0)
	trimmed := NewCursor(ID{Ms: 5}, ID{Ms: 5}, s.info())
	gap, rewound := trimmed.Check(nil, s.info())
	require.True(t, gap)
	require.False(t, rewound)
	_, rewound = trimmed.Check(nil, Info{Last: ID{Ms: 9}})
	require.True(t, rewound, "it was at 10")

	ahead := NewCursor(ID{Ms: 20}, ID{Ms: 10}, s.info())
	for range 2 {
		_, rewound := ahead.Check(nil, s.info())
		require.False(t, rewound)
		require.Equal(t, ID{Ms: 20}, ahead.ID)
	}
}
