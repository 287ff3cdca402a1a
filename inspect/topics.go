package inspect

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/keys"
	"github.com/flaminco/redischannels/internal/stream"
	"github.com/flaminco/redischannels/internal/survey"
)

// ErrNoTopic means that there is no stream of this name, and nothing that waits to be appended to it.
var ErrNoTopic = errors.New("no such topic")

// DefaultLimit is how many results a read yields at most where its query has no Limit.
const DefaultLimit = 10_000

// checkLimit returns the number of results of a query, in which 0 means the usual one.
func checkLimit(field string, limit, usual int) (int, error) {
	switch {
	case limit < 0:
		return 0, invalidArgument(field, fmt.Errorf("must be above 0, or 0 for %d, got %d", usual, limit))
	case limit == 0:
		return usual, nil
	}
	return limit, nil
}

// Topic is a stream, and what belongs to it.
type Topic struct {
	Name        string    `json:"topic"`
	Length      int64     `json:"length"`
	Bytes       int64     `json:"bytes"` // memory of the stream, as MEMORY USAGE estimates it
	Groups      int64     `json:"groups"`
	First       time.Time `json:"first,omitzero"` // when the oldest entry that is left was appended, zero without one
	Last        time.Time `json:"last,omitzero"`  // when the newest one was
	DeadLetters int64     `json:"deadLetters"`
	Delayed     int64     `json:"delayed"`             // messages that are not appended yet, those of schedules included
	Retention   string    `json:"retention,omitempty"` // of the last publisher that has delayed a message, as docs/wire.md says
	Added       int64     `json:"added"`               // entries that were ever appended, -1 before Redis 7
	// Problem is why the topic could not be looked at, as for a name that needs Config.SideKeys; only the name
	// is valid then.
	Problem string `json:"problem,omitempty"`
}

// TopicsQuery narrows down what [Inspector.Topics] yields. The zero value asks for everything.
type TopicsQuery struct {
	Match string // glob-style pattern, as that of SCAN; empty matches all
	Limit int    // greatest number of topics, 0 for DefaultLimit
}

// Topics yields the streams of the servers, in no order, each once; in a cluster those of every master. Streams
// beside a topic (dead letters, return streams, audit) and those of runs are left out. It scans all keys of the
// database, 1,000 at a time, and looks at the topics of a page in one round trip. An error ends the loop.
// (SCAN, XINFO STREAM, MEMORY USAGE, XLEN, ZCARD, HGET)
func (i *Inspector) Topics(ctx context.Context, query TopicsQuery) iter.Seq2[Topic, error] {
	return func(yield func(Topic, error) bool) {
		limit, err := checkLimit("TopicsQuery.Limit", query.Limit, DefaultLimit)
		if err == nil {
			err = readError("topics", "", "", i.topics(ctx, query.Match, limit, func(t Topic) bool { return yield(t, nil) }))
		}
		if err != nil {
			yield(Topic{}, err)
		}
	}
}

func (i *Inspector) topics(ctx context.Context, match string, limit int, yield func(Topic) bool) error {
	nodes, err := masters(ctx, i.config.Client)
	if err != nil {
		return err
	}
	seen := make(map[string]bool)
	for _, node := range nodes {
		for cursor, more := uint64(0), true; more; more = cursor != 0 {
			var page []string
			if page, cursor, err = node.ScanType(ctx, cursor, match, scanCount, "stream").Result(); err != nil {
				return err
			}
			var names []string
			for _, key := range page {
				if !seen[key] && !keys.IsSide(key) && len(seen) < limit {
					seen[key] = true
					names = append(names, key)
				}
			}
			if ended, err := i.yieldTopics(ctx, names, yield); ended || err != nil {
				return err
			}
			if len(seen) == limit {
				return nil
			}
		}
	}
	return nil
}

const (
	scanCount  = 1000
	topicsPage = 100 // topics in one pipeline
)

// yieldTopics looks at topics and yields those that still exist.
func (i *Inspector) yieldTopics(ctx context.Context, names []string, yield func(Topic) bool) (ended bool, err error) {
	for len(names) > 0 {
		page := names[:min(len(names), topicsPage)]
		names = names[len(page):]
		topics, err := i.lookAt(ctx, page)
		if err != nil {
			return false, err
		}
		for _, t := range topics {
			if !yield(t) {
				return true, nil
			}
		}
	}
	return false, nil
}

// masters returns a client for every server that has data of its own.
func masters(ctx context.Context, client redis.UniversalClient) (nodes []*redis.Client, err error) {
	var mu sync.Mutex
	err = eachMaster(ctx, client, func(_ context.Context, node *redis.Client) error {
		mu.Lock()
		defer mu.Unlock()
		nodes = append(nodes, node)
		return nil
	})
	return nodes, err
}

// lookAt returns the topics of these names, without those that have nothing.
func (i *Inspector) lookAt(ctx context.Context, names []string) ([]Topic, error) {
	topics, questions, of := make([]Topic, len(names)), []survey.Question{}, []int{}
	for n, name := range names {
		topics[n].Name = name
		side, err := i.sideKeys(name)
		if err == nil {
			var dead string
			if dead, err = i.deadTopic(side); err == nil {
				questions, of = append(questions, survey.Question{Topic: side, Dead: dead}), append(of, n)
				continue
			}
		}
		topics[n].Problem = err.Error()
	}
	found, errs := survey.Topics(ctx, i.config.Client, questions)
	for k, n := range of {
		if errs[k] != nil {
			return nil, errs[k]
		}
		topics[n] = newTopic(names[n], found[k])
	}
	return compact(topics), nil
}

// compact leaves out topics without a name.
func compact(topics []Topic) []Topic {
	left := topics[:0]
	for _, t := range topics {
		if t.Name != "" {
			left = append(left, t)
		}
	}
	return left
}

// newTopic is without a name where there is nothing.
func newTopic(name string, t survey.Topic) Topic {
	if !t.Exists && t.Delayed+t.DeadLetters == 0 {
		return Topic{}
	}
	return Topic{
		Name: name, Length: t.Length, Bytes: t.Bytes, Groups: t.Groups, First: timeOf(t.First), Last: timeOf(t.Last),
		DeadLetters: t.DeadLetters, Delayed: t.Delayed, Retention: t.Retention, Added: t.Added,
	}
}

// timeOf returns when an entry was appended, zero for no entry.
func timeOf(id stream.ID) time.Time {
	if id.IsZero() {
		return time.Time{}
	}
	return time.UnixMilli(int64(id.Ms)).UTC()
}

// Topic returns a topic. The error wraps [ErrNoTopic] where there is nothing of that name, and
// [redischannels.ErrWrongType] where it is no stream. (XINFO STREAM, MEMORY USAGE, XLEN, ZCARD, HGET)
func (i *Inspector) Topic(ctx context.Context, topic string) (Topic, error) {
	if _, err := i.sideKeys(topic); err != nil {
		return Topic{}, err
	}
	found, err := i.lookAt(ctx, []string{topic})
	switch {
	case err != nil:
		return Topic{}, readError("look at", topic, "", err)
	case len(found) == 0:
		return Topic{}, readError("look at", topic, "", ErrNoTopic)
	case found[0].Problem != "":
		return Topic{}, invalidArgument("topic", errors.New(found[0].Problem))
	}
	return found[0], nil
}
