package delayed

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
)

// Waiting is an entry in the store.
type Waiting struct {
	ID    string
	Due   time.Time // by the clock of the server, to the millisecond
	Entry string    // packed; empty if it is missing
}

// List returns a page of the waiting entries of the target, in the order in which they are due,
// after the last entry of the previous page; nil begins with the first. An empty page is the end.
func List(ctx context.Context, client redis.UniversalClient, target Target, last *Waiting) ([]Waiting, error) {
	score, after := "", ""
	if last != nil {
		score, after = strconv.FormatInt(last.Due.UnixMilli(), 10), last.ID
	}
	words, err := listScript.Run(ctx, client, []string{target.Due(), target.Topic.Delayed()}, score, after, pageEntries, pageBytes).StringSlice()
	if err != nil {
		return nil, err
	}
	page := make([]Waiting, 0, len(words)/3)
	for i := 0; i+2 < len(words); i += 3 {
		ms, err := strconv.ParseFloat(words[i+1], 64)
		if err != nil {
			return nil, err
		}
		page = append(page, Waiting{ID: words[i], Due: time.UnixMilli(int64(ms)), Entry: words[i+2]})
	}
	return page, nil
}

// Waits reports whether an entry waits for the target.
func Waits(ctx context.Context, client redis.UniversalClient, target Target) (bool, error) {
	first, err := client.ZRange(ctx, target.Due(), 0, 0).Result()
	return len(first) > 0, err
}

// Cancel deletes stored entries and reports for each whether it was still stored. After an error
// reply none is deleted; after a lost reply they may or may not be. The client does not retry it.
func Cancel(ctx context.Context, client redis.UniversalClient, target Target, ids []string) ([]bool, error) {
	args := make([]any, len(ids))
	for i, id := range ids {
		args[i] = id
	}
	reply, err := cancelScript.once(ctx, client, []string{target.Due(), target.Topic.Delayed()}, args...)
	if err != nil {
		return nil, err
	}
	items, ok := reply.([]any)
	if !ok || len(items) != len(ids) {
		return nil, errors.New("delayed: unexpected reply of the script that cancels")
	}
	cancelled := make([]bool, len(items))
	for i, item := range items {
		n, _ := item.(int64)
		cancelled[i] = n == 1
	}
	return cancelled, nil
}
