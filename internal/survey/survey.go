// Package survey reads where topics and their consumer groups stand, for GroupStats and for package inspect.
// It changes nothing.
package survey

import (
	"context"
	_ "embed" // the scripts
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/control"
	"github.com/flaminco/redischannels/internal/keys"
	"github.com/flaminco/redischannels/internal/redisconn"
	"github.com/flaminco/redischannels/internal/stream"
)

var (
	//go:embed lua/topic.lua
	topicLua string
	//go:embed lua/members.lua
	membersLua string

	topicScript   = redis.NewScript(topicLua)
	membersScript = redis.NewScript(membersLua)
)

// Topic is what belongs to a topic.
type Topic struct {
	Exists      bool // there is a stream
	Length      int64
	Added       int64 // entries that were ever added, -1 before Redis 7
	Groups      int64
	First, Last stream.ID // entries that are left, zero for none
	Bytes       int64
	DeadLetters int64
	Delayed     int64
	Retention   string
}

// Question is a topic and its dead-letter stream.
type Question struct {
	Topic keys.Topic
	Dead  string
}

// Topics looks at topics, by one round trip. Each has a result or an error.
// (XINFO STREAM, MEMORY USAGE, XLEN, ZCARD, HGET)
func Topics(ctx context.Context, client redis.UniversalClient, questions []Question) ([]Topic, []error) {
	calls := make([]stream.Call, len(questions))
	for i, q := range questions {
		calls[i].Keys = []string{q.Topic.Name, q.Dead, q.Topic.Due(""), q.Topic.Control()}
	}
	topics, errs := make([]Topic, len(questions)), make([]error, len(questions))
	for i, cmd := range stream.RunEach(ctx, client, topicScript, calls) {
		topics[i], errs[i] = topicOf(cmd)
	}
	return topics, errs
}

func topicOf(cmd *redis.Cmd) (t Topic, err error) {
	reply, err := cmd.Slice()
	if err != nil {
		return t, err
	}
	if len(reply) != 10 {
		return t, redisconn.ErrMalformed
	}
	for i, to := range map[int]*int64{0: &t.Length, 1: &t.Added, 2: &t.Groups, 5: &t.Bytes, 6: &t.DeadLetters, 7: &t.Delayed} {
		*to, _ = reply[i].(int64)
	}
	for i, to := range map[int]*stream.ID{3: &t.First, 4: &t.Last} {
		if *to, err = idOf(reply[i]); err != nil {
			return t, err
		}
	}
	t.Retention, _ = reply[8].(string)
	t.Exists = reply[9] == int64(1)
	return t, nil
}

// idOf reads an entry ID, or zero for an empty text.
func idOf(reply any) (stream.ID, error) {
	text, _ := reply.(string)
	if text == "" {
		return stream.ID{}, nil
	}
	return stream.ParseID(text)
}

// Group is where a group stands on a topic.
type Group struct {
	stream.Lag
	LagAtMost int64 // Lag where that is exact
	Deferred  int64
	Returned  int64
	Pause     control.Paused
}

// AllPending is what was delivered to the group and not acknowledged, wherever it is.
func (g Group) AllPending() int64 { return g.Pending + g.Deferred + g.Returned }

// mostCounted bounds how many entries are counted where Redis does not know the lag.
const mostCounted = 10_000

// LookAtGroup returns where a group stands. (as Group.Lag of internal/stream; ZCARD, XLEN, HGET, TIME)
func LookAtGroup(ctx context.Context, client redis.UniversalClient, topic keys.Topic, name string) (g Group, err error) {
	group := &stream.Group{Client: client, Key: topic.Name, Name: name}
	if g.Lag, err = group.Lag(ctx, mostCounted); err != nil {
		return g, err
	}
	pipe := client.Pipeline()
	deferred, returned := pipe.ZCard(ctx, topic.Due(name)), pipe.XLen(ctx, topic.Return(name))
	length := pipe.XLen(ctx, topic.Name)
	if _, err = pipe.Exec(ctx); err != nil {
		return g, err
	}
	g.Deferred, g.Returned, g.LagAtMost = deferred.Val(), returned.Val(), g.Lag.Lag
	if g.More {
		g.LagAtMost = max(g.Lag.Lag, length.Val())
	}
	g.Pause, err = control.Look(ctx, client, topic, name)
	return g, err
}

// Members are the consumers of a group.
type Members struct {
	Oldest    stream.ID     // pending entry of the topic, zero without one
	Added     int64         // entries that were ever added to the topic, -1 before Redis 7
	MinIdle   time.Duration // of the group's subscriptions, 0 where none has joined
	Consumers []Consumer
}

// Consumer is one of a group, in the topic and in the return stream together.
type Consumer struct {
	Name    string
	Pending int64
	Idle    time.Duration
}

// LookAtMembers returns the consumers of a group. (XINFO CONSUMERS, XINFO STREAM, XPENDING, HGET)
func LookAtMembers(ctx context.Context, client redis.UniversalClient, topic keys.Topic, group string) (m Members, err error) {
	reply, err := membersScript.Run(ctx, client, []string{topic.Name, topic.Return(group), topic.Control()}, group).Slice()
	if err != nil {
		return m, err
	}
	if len(reply) < 3 || len(reply)%3 != 0 {
		return m, redisconn.ErrMalformed
	}
	if m.Oldest, err = idOf(reply[0]); err != nil {
		return m, err
	}
	if text, _ := reply[1].(string); text != "" {
		ms, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return m, redisconn.ErrMalformed
		}
		m.MinIdle = time.Duration(ms) * time.Millisecond
	}
	m.Added, _ = reply[2].(int64)
	for r := reply[3:]; len(r) > 0; r = r[3:] {
		name, _ := r[0].(string)
		pending, _ := r[1].(int64)
		idle, _ := r[2].(int64)
		m.Consumers = append(m.Consumers, Consumer{name, pending, time.Duration(idle) * time.Millisecond})
	}
	return m, nil
}
