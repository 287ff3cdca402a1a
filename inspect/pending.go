package inspect

import (
	"context"
	"iter"
	"time"

	"github.com/redis/go-redis/v9"
)

// PendingQuery narrows down what [Inspector.Pending] yields. The zero value asks for everything that is pending in
// the topic itself.
type PendingQuery struct {
	Consumer string        // empty for all
	MinIdle  time.Duration // only entries that were idle for that long
	// Returned asks for the pending entries of the group's return stream instead of those of the topic.
	Returned bool
	After    string // an entry ID: the list begins behind it
	Limit    int    // greatest number of entries, 0 for DefaultLimit
}

// PendingEntry is an entry that was delivered to a consumer and not acknowledged.
type PendingEntry struct {
	ID         string        `json:"id"` // in the topic, or in the return stream
	Consumer   string        `json:"consumer"`
	Idle       time.Duration `json:"idleNs"`     // since it was delivered, or its lease was renewed
	Deliveries int64         `json:"deliveries"` // as Redis counts them
}

// pendingPage is how many pending entries one command returns.
const pendingPage = 500

// Pending yields the pending entries of a group, oldest first, read in pages. What is delivered or acknowledged
// meanwhile may or may not be yielded. An error ends the loop; it wraps [ErrNoGroup] where there is no such
// group. (XPENDING)
func (i *Inspector) Pending(ctx context.Context, topic, group string, query PendingQuery) iter.Seq2[PendingEntry, error] {
	return func(yield func(PendingEntry, error) bool) {
		if err := i.pending(ctx, topic, group, query, func(e PendingEntry) bool { return yield(e, nil) }); err != nil {
			yield(PendingEntry{}, err)
		}
	}
}

func (i *Inspector) pending(ctx context.Context, topic, group string, query PendingQuery, yield func(PendingEntry) bool) error {
	of, err := i.group(topic, group)
	if err != nil {
		return err
	}
	left, err := checkLimit("PendingQuery.Limit", query.Limit, DefaultLimit)
	if err != nil {
		return err
	}
	start := "-"
	if query.After != "" {
		after, err := parseID("PendingQuery.After", query.After)
		if err != nil {
			return err
		}
		start = "(" + after.String()
	}
	key := of.Topic.Name
	if query.Returned {
		key = of.Topic.Return(group)
	}
	for {
		// Redis would walk through all entries in one command to find some that were idle for long.
		page, err := i.config.Client.XPendingExt(ctx, &redis.XPendingExtArgs{
			Stream: key, Group: group, Start: start, End: "+", Count: pendingPage, Consumer: query.Consumer,
		}).Result()
		if err != nil {
			return readError("pending entries", topic, group, err)
		}
		for _, p := range page {
			if p.Idle < query.MinIdle {
				continue
			}
			left--
			if !yield(PendingEntry{p.ID, p.Consumer, p.Idle, p.RetryCount}) || left == 0 {
				return nil
			}
		}
		if len(page) < pendingPage {
			return nil
		}
		start = "(" + page[len(page)-1].ID
	}
}
