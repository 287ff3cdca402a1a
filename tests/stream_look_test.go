package tests

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/redistest"
	"github.com/flaminco/redischannels/internal/stream"
)

// A check at a stream without its entries and one by XINFO STREAM, which a user that may only read is
// left with, say the same to a cursor, whatever was added, trimmed and deleted, and wherever it is.
func TestStream_LooksWithAndWithoutEntriesAgree(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, redistest.WithACL("reader on >secret ~* +xread +xinfo|stream +evalsha +eval"))
	client := server.Client(t)
	redistest.NeedsRedis7(t, client, "the lag of XINFO GROUPS")
	reader := server.Client(t, redistest.As("reader", "secret"))
	ctx := t.Context()
	random := rand.New(rand.NewPCG(1, 2))
	key := func(n int) string { return fmt.Sprintf("%s:%d", redistest.Key(t), n) }
	for n := range 30 {
		key := key(n)
		id := uint64(0)
		at := func() stream.ID { return stream.ID{Ms: random.Uint64N(id + 2)} }
		change := func() {
			switch random.IntN(5) {
			case 0:
				require.NoError(t, client.XTrimMaxLen(ctx, key, random.Int64N(6)).Err())
			case 1:
				require.NoError(t, client.XDel(ctx, key, at().String()).Err())
			default:
				for range random.IntN(4) {
					id++
					require.NoError(t, client.XAdd(ctx, &redis.XAddArgs{Stream: key, ID: fmt.Sprint(id), Values: []string{"v", ""}}).Err())
				}
			}
		}
		look := func(client redis.UniversalClient, l stream.Look) stream.Info {
			info, err := stream.Stat(ctx, client, l)
			require.NoError(t, err)
			return info
		}
		for range 12 {
			change()
			start := stream.Start{After: at(), End: random.IntN(4) == 0, Ahead: random.IntN(2) == 0}
			cheap, whole := start.Cursor(look(client, start.Look(key))), start.Cursor(look(reader, start.Look(key)))
			require.Equal(t, whole, cheap)
			for range 4 {
				entries, err := stream.ReadAfter(ctx, client, key, cheap.ID, 3)
				require.NoError(t, err)
				if random.IntN(2) == 0 {
					change()
				}
				question := cheap.Look(key, entries)
				without, with := look(client, question), look(reader, question)
				missed, rewound := cheap.Check(entries, without)
				wantMissed, wantRewound := whole.Check(entries, with)
				require.Equal(t, []any{wantMissed, wantRewound, whole}, []any{missed, rewound, cheap}, "%v %v, %v", question, with, without)
				change()
			}
		}
		groups, err := client.XInfoGroups(ctx, key).Result()
		if err == nil {
			require.Empty(t, groups)
		}
	}
}
