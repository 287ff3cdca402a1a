package stream

import (
	"context"
	_ "embed" // the scripts
	"slices"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/redisconn"
)

//go:embed lua/info.lua
var infoSource string

//go:embed lua/range.lua
var rangeSource string

var (
	infoScript  = redis.NewScript(LessLua + BehindLua + infoSource)
	rangeScript = redis.NewScript(rangeSource)
)

// Look is a query of the state of a stream, for a reader of it. The result has the first entry if
// it matters to the reader: Info.First is After if an entry at or before that is left, and zero
// if no entry is left, nothing was added behind After, or nothing was read and nothing removed.
type Look struct {
	Key   string
	After ID // the reader reads after this ID
	Read  ID // of the first entry that it has read there, zero if it has read none
}

// Info has the begin and the end of a stream.
type Info struct {
	Last   ID    // the greatest ID that the stream ever had
	First  ID    // of the first remaining entry, see Look
	Added  int64 // number of entries that were ever added, -1 before Redis 7
	Length int64 // number of entries
}

// Stat returns the bounds of a stream; those of a missing one are zero.
// (XLEN, XGROUP CREATE, XINFO GROUPS, XGROUP DESTROY, XRANGE; or XINFO STREAM)
func Stat(ctx context.Context, client redis.UniversalClient, look Look) (Info, error) {
	looks := []Look{look}
	keys, args := questions(looks)
	infos, err := infosOf(runScript(ctx, client, infoScript, keys, args...), 1)
	if err != nil {
		return Info{}, err
	}
	return infos[0], nil
}

// Last returns the greatest ID that a stream ever had.
func Last(ctx context.Context, client redis.UniversalClient, key string) (ID, error) {
	info, err := Stat(ctx, client, Look{Key: key, After: MaxID})
	return info.Last, err
}

// statKeys is the number of streams in one script, which blocks Redis.
const statKeys = 16

// StatAll is Stat for several streams, in Redis Cluster of one hash slot, by one round trip.
func StatAll(ctx context.Context, client redis.UniversalClient, looks []Look) ([]Info, error) {
	parts := slices.Collect(slices.Chunk(looks, statKeys))
	calls := make([]Call, len(parts))
	for i, part := range parts {
		calls[i].Keys, calls[i].Args = questions(part)
	}
	infos := make([]Info, 0, len(looks))
	for i, cmd := range RunEach(ctx, client, infoScript, calls) {
		some, err := infosOf(cmd, len(parts[i]))
		if err != nil {
			return nil, err
		}
		infos = append(infos, some...)
	}
	return infos, nil
}

// questions returns the keys and the arguments of info.lua.
func questions(looks []Look) (keys []string, args []any) {
	for _, look := range looks {
		read := ""
		if !look.Read.IsZero() {
			read = look.Read.String()
		}
		keys, args = append(keys, look.Key), append(args, look.After.String(), read)
	}
	return keys, args
}

func infosOf(cmd *redis.Cmd, streams int) ([]Info, error) {
	reply, err := cmd.Slice()
	if err != nil {
		return nil, err
	}
	if len(reply) != 4*streams {
		return nil, redisconn.ErrMalformed
	}
	infos := make([]Info, 0, streams)
	for r := range slices.Chunk(reply, 4) {
		var ids [2]ID
		for i := range ids {
			text, _ := r[i].(string)
			if text == "" {
				continue
			}
			if ids[i], err = ParseID(text); err != nil {
				return nil, redisconn.ErrMalformed
			}
		}
		infos = append(infos, Info{Last: ids[0], First: ids[1], Added: toInt(r[2]), Length: toInt(r[3])})
	}
	return infos, nil
}

// Range returns up to limit entries after `after` up to and including `last`.
// (XRANGE key (after last COUNT limit)
func Range(ctx context.Context, client redis.UniversalClient, key string, after, last ID, limit int) ([]Entry, error) {
	reply, err := runScript(ctx, client, rangeScript, []string{key}, after.Next().String(), last.String(), limit).Slice()
	if err != nil {
		return nil, err
	}
	entries := make([]Entry, 0, len(reply)/2)
	for i := 0; i+1 < len(reply); i += 2 {
		text, _ := reply[i].(string)
		id, err := ParseID(text)
		if err != nil {
			return nil, redisconn.ErrMalformed
		}
		entries = append(entries, NewEntry(id, toStrings(reply[i+1])))
	}
	return entries, nil
}
