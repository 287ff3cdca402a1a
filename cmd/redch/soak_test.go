package main

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/redistest"
)

// The sizes of TestSoakRedch_LargeServer.
const (
	manyTopics  = 10_000
	manyGroups  = 1_000
	manyPending = 1_000_000
	manyDead    = 100_000
)

// largeServer has all of them: the topic busy has the pending entries of the group g and the dead letters, the topic
// wide the groups.
func largeServer(t *testing.T) *shell {
	t.Helper()
	server := redistest.Start(t, redistest.Arg("appendonly", "no"), redistest.Arg("save", ""))
	s := &shell{t, server, server.Client(t, func(o *redis.Options) { o.ReadTimeout = time.Minute })}
	s.fill("for i = 1, ARGV[1] do redis.call('XADD', KEYS[1] .. i, '*', '_watermill_message_uuid', 'u', 'metadata', '', 'payload', i) end", "topic-", manyTopics)
	s.fill("for i = 1, ARGV[1] do redis.call('XADD', KEYS[1], '*', '_watermill_message_uuid', 'u', 'metadata', '', 'payload', i) end", "busy", manyPending)
	require.NoError(t, s.client.XGroupCreate(t.Context(), "busy", "g", "0").Err())
	s.fill(`for i = 1, ARGV[1] / 1000 do redis.call('XREADGROUP', 'GROUP', 'g', 'c-' .. i % 50, 'COUNT', 1000, 'STREAMS', KEYS[1], '>') end`, "busy", manyPending)
	s.fill(`for i = 1, ARGV[1] do
		redis.call('XADD', KEYS[1], '*', '_watermill_message_uuid', 'u', 'metadata', '', 'payload', i, '_dead_reason', 'reason ' .. i % 20,
			'_dead_entry_id', '1-1', '_dead_topic', 'busy', '_dead_group', 'g', '_dead_consumer', 'c-1', '_dead_count', '3', '_dead_time', '2024-01-02T15:04:05.000Z')
	end`, "{busy}:dead", manyDead)
	s.fill(`redis.call('XADD', KEYS[1], '*', 'a', 'b') for i = 1, ARGV[1] do redis.call('XGROUP', 'CREATE', KEYS[1], 'group-' .. i, '0') end`, "wide", manyGroups)
	return s
}

// fill runs a script that makes many things. It is one slow command, before the test looks for those.
func (s *shell) fill(script, key string, count int) {
	s.t.Helper()
	require.NoError(s.t, s.client.Eval(s.t.Context(), script+" return 1", []string{key}, count).Err())
}

// slow returns the commands that took more than 5 ms on the server and do so each time: it shares its processor, so
// that any command may last longer once.
func (s *shell) slow() (commands []string) {
	s.t.Helper()
	for _, entry := range s.client.SlowLogGet(s.t.Context(), 100).Val() {
		again := make([]any, len(entry.Args))
		for i, arg := range entry.Args {
			again[i] = arg
		}
		if !s.fastOnce(again) {
			commands = append(commands, fmt.Sprintf("%v %.200s", entry.Duration, strings.Join(entry.Args, " ")))
		}
	}
	return commands
}

// fastOnce reports whether a command is not slow in one of some runs. One that the log has cut fails, and is slow.
func (s *shell) fastOnce(args []any) bool {
	s.t.Helper()
	for range 5 {
		require.NoError(s.t, s.client.SlowLogReset(s.t.Context()).Err())
		if s.client.Do(s.t.Context(), args...).Err() == nil && len(s.client.SlowLogGet(s.t.Context(), 1).Val()) == 0 {
			return true
		}
	}
	return false
}

// Every read of a large server is bounded and takes seconds, and none of its commands takes more than 5 ms of the
// server.
func TestSoakRedch_LargeServer(t *testing.T) {
	if os.Getenv("SOAK") == "" {
		t.Skip("SOAK is not set: this is for make soak")
	}
	s := largeServer(t)
	ctx := t.Context()
	require.NoError(t, s.client.ConfigSet(ctx, "slowlog-log-slower-than", "5000").Err())
	id := s.client.XRangeN(ctx, "busy", "-", "+", 1).Val()[0].ID
	dead := s.client.XRevRangeN(ctx, "{busy}:dead", "+", "-", 1).Val()[0].ID
	for _, args := range [][]string{
		{"topics"}, {"topics", "topic-99*"}, {"groups", "busy"}, {"groups", "wide"}, {"consumers", "busy", "g"},
		{"pending", "busy", "g"}, {"pending", "busy", "g", "--consumer", "c-7"}, {"pending", "busy", "g", "--idle", "1h"}, {"pending", "busy", "g", "-n", "10000"},
		{"show", "busy", id}, {"tail", "busy", "-n", "10000", "--no-follow"},
		{"dead", "reasons", "busy"}, {"dead", "list", "busy"}, {"dead", "list", "busy", "--group", "other"}, {"dead", "show", "busy", dead},
		{"dead", "requeue", "busy", "--dry-run"}, {"dead", "purge", "busy", "--reason", "reason 7", "--dry-run"},
		{"delayed", "busy"}, {"delayed", "busy", "g"}, {"schedules", "busy"}, {"audit", "busy"}, {"doctor"}, {"doctor", "wide"}, {"doctor", "--limit", "100000"},
		{"acl", "busy"}, {"check", "busy", "g"}, {"check", "wide", "group-1", "--min-alive", "0"}, {"trim", "busy", "--dry-run"}, {"trim", "wide", "--dry-run"},
		{"skip", "busy", "g", id, "--dry-run"}, {"remove", "busy", "g", "c-7", "--release", "--dry-run"}, {"pause", "busy", "g", "--dry-run"},
	} {
		name := strings.Join(args, " ")
		require.NoError(t, s.client.SlowLogReset(ctx).Err())
		begun := time.Now()
		out, problems, code := s.run("", args...)
		took := time.Since(begun)
		t.Logf("%6d ms, %7d bytes: %s", took.Milliseconds(), len(out), name)
		require.Contains(t, []int{exitOK, exitCheck}, code, "%s: %s", name, problems)
		require.Less(t, took, 20*time.Second, name)
		require.Empty(t, s.slow(), name)
	}
}
