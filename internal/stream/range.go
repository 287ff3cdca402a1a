package stream

import (
	"context"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/redisconn"
)

// RangeEntry is an entry with its fields in their order, duplicates included.
type RangeEntry struct {
	ID     string
	Values []string // names and values in turn
	Size   int      // bytes of all of them
}

// ReadRange returns up to count entries of a stream by XRANGE or XREVRANGE. A missing stream has none. It
// parses the reply itself: go-redis makes a map of the fields, which loses their order and duplicates.
func ReadRange(ctx context.Context, client redis.UniversalClient, command, key, from, to string, count int) ([]RangeEntry, error) {
	reply, err := client.Do(ctx, command, key, from, to, "COUNT", count).Slice()
	if err != nil {
		return nil, err
	}
	entries := make([]RangeEntry, len(reply))
	for i, item := range reply {
		if !entries[i].parse(item) {
			return nil, redisconn.ErrMalformed
		}
	}
	return entries, nil
}

func (e *RangeEntry) parse(item any) (ok bool) {
	pair, _ := item.([]any)
	if len(pair) != 2 {
		return false
	}
	fields, ok := pair[1].([]any)
	if !ok || len(fields)%2 != 0 {
		return false
	}
	if e.ID, ok = pair[0].(string); !ok {
		return false
	}
	e.Values = make([]string, len(fields))
	for i, f := range fields {
		if e.Values[i], ok = f.(string); !ok {
			return false
		}
		e.Size += len(e.Values[i])
	}
	return true
}
