package stream

import (
	"context"
	_ "embed" // the scripts

	"github.com/redis/go-redis/v9"
)

//go:embed lua/info.lua
var infoSource string

//go:embed lua/range.lua
var rangeSource string

var (
	infoScript  = redis.NewScript(infoSource)
	rangeScript = redis.NewScript(rangeSource)
)

// Info tells where a stream begins and ends.
type Info struct {
	Last   ID    // the greatest ID that the stream ever had
	First  ID    // of the entries that are left, zero if none is
	Added  int64 // number of entries that were ever added, -1 before Redis 7
	Length int64 // number of entries
}

// Stat returns the bounds of a stream; those of a missing one are zero.
// (XINFO STREAM)
func Stat(ctx context.Context, client redis.UniversalClient, key string) (Info, error) {
	reply, err := infoScript.Run(ctx, client, []string{key}).Slice()
	if err != nil {
		return Info{}, err
	}
	if len(reply) != 4 {
		return Info{}, errReply
	}
	var ids [2]ID
	for i := range ids {
		text, _ := reply[i].(string)
		if text == "" {
			continue
		}
		if ids[i], err = ParseID(text); err != nil {
			return Info{}, errReply
		}
	}
	return Info{Last: ids[0], First: ids[1], Added: toInt(reply[2]), Length: toInt(reply[3])}, nil
}

// Range returns up to limit entries after `after` up to and including `last`.
// (XRANGE key (after last COUNT limit)
func Range(ctx context.Context, client redis.UniversalClient, key string, after, last ID, limit int) ([]Entry, error) {
	reply, err := rangeScript.Run(ctx, client, []string{key}, after.Next().String(), last.String(), limit).Slice()
	if err != nil {
		return nil, err
	}
	entries := make([]Entry, 0, len(reply)/2)
	for i := 0; i+1 < len(reply); i += 2 {
		text, _ := reply[i].(string)
		id, err := ParseID(text)
		if err != nil {
			return nil, errReply
		}
		entries = append(entries, NewEntry(id, toStrings(reply[i+1])))
	}
	return entries, nil
}
