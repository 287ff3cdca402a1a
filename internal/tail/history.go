package tail

import (
	"context"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/stream"
)

// A History reads pages of this many entries at most, and of about this many bytes.
const (
	historyPage  = 1000
	historyBytes = 4 << 20
)

// History reads a part of a stream whose end is fixed. It uses the caller's client and needs no
// Close.
type History struct {
	client redis.UniversalClient
	key    string
	cursor stream.Cursor
	last   stream.ID
	size   pageSize
}

// OpenHistory returns a History of a stream. It begins after from and goes up to to.
func OpenHistory(ctx context.Context, client redis.UniversalClient, key string, from, to stream.Start) (*History, error) {
	info, err := stream.Stat(ctx, client, stream.Look{Key: key, After: stream.MaxID})
	if err != nil {
		return nil, err
	}
	return &History{
		client: client, key: key, cursor: from.Cursor(info), last: to.Cursor(info).ID,
		size: newPageSize(historyPage, historyBytes),
	}, nil
}

// More reports whether another page may come.
func (h *History) More() bool { return h.cursor.ID.Less(h.last) }

// Next returns the next page. It ends the history if the stream went back.
func (h *History) Next(ctx context.Context) (Page, error) {
	entries, err := stream.Range(ctx, h.client, h.key, h.cursor.ID, h.last, h.size.n)
	if err != nil {
		return Page{}, err
	}
	info, err := stream.Stat(ctx, h.client, h.cursor.Look(h.key, entries))
	if err != nil {
		return Page{}, err
	}
	page := check(&h.cursor, entries, info)
	if page.Rewound != nil || len(entries) < h.size.n {
		h.cursor.ID = h.last
	}
	h.size.read(entries)
	return page, nil
}
