package main

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/redistest"
)

// The doctor prints findings of topics behind those of servers, in 80 columns.
func TestRedch_Doctor(t *testing.T) {
	s := newShell(t)
	s.shop()
	require.NoError(t, s.client.HSet(t.Context(), "{orders}:control", "min-idle:billing", 1).Err())
	require.NoError(t, s.client.XGroupCreate(t.Context(), "orders", "shipping", "0").Err())
	redistest.Eventually(t, 20*time.Second, func() bool {
		out, _, _ := s.run("", "doctor", "orders")
		return strings.Contains(out, "crashed")
	}, "the consumer has crashed")
	out, _, code := s.run("", "doctor", "orders", "--limit", "2")
	require.Zero(t, code)
	for line := range strings.Lines(out) {
		require.LessOrEqual(t, len([]rune(strings.TrimSpace(line))), 80, line)
	}
	var topics []string
	for _, block := range regexp.MustCompile(`(?m)^(critical|warning|info): .*\n(  .*\n)*`).FindAllString(out, -1) {
		if !strings.Contains(block, s.server.Addr()) {
			topics = append(topics, block)
		}
	}
	require.Equal(t, strings.TrimLeft(`
warning: consumers (orders billing)
  the group has no consumer that is alive, and its backlog is at least 2
  start its service, or remove the group (redch remove-group) if nothing needs
  it
warning: crashed (orders billing)
  1 pending entries of crashed consumers were not claimed: crashed
  start a consumer of this library, which claims them, or release them (redch
  remove --release)
info: limit ()
  only 2 topics and groups were checked, and there are more
  give a pattern of topics, or a greater limit
`, "\n"), strings.Join(topics, ""))
}

// acl prints the rule of a role, and exits with 3 where the user lacks a part of it.
func TestRedch_ACL(t *testing.T) {
	s := newShell(t)
	s.same("~orders +xadd +multi +exec\nnothing is missing", "acl", "orders")
	redistest.NeedsRedis7(t, s.client, "redis.acl_check_cmd")
	require.NoError(t, s.client.Do(t.Context(), "acl", "setuser", "shop", "on", ">pw", "~orders", "+@all", "-xack", "-xclaim").Err())
	out, problems, code := s.run("", "acl", "orders", "--group", "billing", "--role", "consumer", "--url", "redis://shop:pw@"+s.server.Addr())
	require.Equal(t, exitCheck, code, problems)
	require.Contains(t, out, "~{orders}:return:billing")
	require.Contains(t, out, "missing: +xack +xclaim ~{orders}:dead ~{orders}:return:billing")
	for line := range strings.Lines(out) {
		require.LessOrEqual(t, len(strings.TrimSpace(line)), 80, line)
	}
}

// trim removes the entries that no group needs, and its dry run names the reason why the others stay.
func TestRedch_Trim(t *testing.T) {
	s := newShell(t)
	values := []string{"a", strings.Repeat("b", 10)}
	var last string
	for range 1000 {
		last = s.client.XAdd(t.Context(), &redis.XAddArgs{Stream: "orders", Values: values}).Val()
	}
	s.same("1000 entries; there is no group, so nothing is removed", "trim", "orders", "--dry-run")
	require.NoError(t, s.client.XGroupCreate(t.Context(), "orders", "billing", "0").Err())
	s.same("1000 entries; a trim ends where group billing stands", "trim", "orders", "--dry-run")
	s.same("0 entries were removed, 1000 are left; a trim ends where group billing stands", "trim", "orders", "--confirm", "orders")
	require.NoError(t, s.client.XGroupSetID(t.Context(), "orders", "billing", last).Err())
	s.same("1000 entries; a trim ends where group billing stands", "trim", "orders", "--dry-run")
	_, problems, code := s.run("shop\n", "trim", "orders")
	require.Equal(t, exitError, code)
	require.Contains(t, problems, "nothing was done")
	require.EqualValues(t, 1000, s.client.XLen(t.Context(), "orders").Val())
	out, problems, code := s.run("orders\n", "trim", "orders")
	require.Zero(t, code, problems)
	require.Regexp(t, `Entries of orders that no group needs will be removed, of 1000. This cannot be undone.`, out)
	require.Regexp(t, `[1-9]\d* entries were removed, \d+ are left; a trim ends where group billing stands`, out)
	require.Less(t, s.client.XLen(t.Context(), "orders").Val(), int64(200))
}

// produce prints the ID of the entry, and its dry run the message.
func TestRedch_Produce(t *testing.T) {
	s := newShell(t)
	args := []string{"produce", "orders", `{"id":1}`, "-m", "name=order.placed", "--uuid", "u-1"}
	s.same(`
bytes 68
uuid u-1
metadata name = order.placed
payload {"id":1}
would be published to orders`, append(args, "--dry-run")...)
	out, _, code := s.run("", append(args, "--dry-run", "-o", "json")...)
	require.Zero(t, code)
	require.JSONEq(t, `{"bytes": 68, "uuid": "u-1", "metadata": {"name": "order.placed"}, "payload": "{\"id\":1}"}`, out)
	require.Zero(t, s.client.XLen(t.Context(), "orders").Val())
	s.same("ID", args...)
	require.EqualValues(t, 1, s.client.XLen(t.Context(), "orders").Val())
	_, problems, code := s.run("[]", "produce", "orders", "-f", "fields", "--dry-run")
	require.Equal(t, exitError, code)
	require.NotEmpty(t, problems)
}

// A group whose consumers are at work stays; a removed one takes with it exactly the entries of the dry run.
func TestRedch_RemoveGroup(t *testing.T) {
	s := newShell(t)
	s.shop()
	_, problems, code := s.run("", "remove-group", "orders", "billing", "--confirm", "orders")
	require.Equal(t, exitError, code)
	require.Contains(t, problems, "consumers of the group are at work: crashed")
	require.NoError(t, s.client.HSet(t.Context(), "{orders}:control", "min-idle:billing", 1).Err())
	s.same("group billing would be removed, with 1 pending, 0 returned and 0 deferred entries", "remove-group", "orders", "billing", "--dry-run")
	out, problems, code := s.run("billing\n", "remove-group", "orders", "billing")
	require.Equal(t, exitError, code)
	require.Contains(t, out, "Group billing of orders will be removed, with 1 entries that wait for it. This cannot be undone.")
	require.Contains(t, problems, "nothing was done")
	require.Len(t, s.client.XInfoGroups(t.Context(), "orders").Val(), 1)
	s.same("group billing was removed, with 1 pending, 0 returned and 0 deferred entries", "remove-group", "orders", "billing", "--confirm", "orders")
	require.Empty(t, s.client.XInfoGroups(t.Context(), "orders").Val())
}

// A seek does what its dry run has printed, asks before, and is refused without a pause.
func TestRedch_Seek(t *testing.T) {
	s := newShell(t)
	s.shop()
	ids := idsOfOrders(t, s)
	before := s.client.XInfoGroups(t.Context(), "orders").Val()[0].LastDeliveredID
	args := []string{"seek", "orders", "billing", "--to", "oldest"}
	_, problems, code := s.run("", append(args, "--confirm", "orders")...)
	require.Equal(t, exitError, code)
	require.Contains(t, problems, "the consumer group is not paused")
	require.NoError(t, s.client.HSet(t.Context(), "{orders}:control", "min-idle:billing", 1).Err())
	_, problems, code = s.run("", "pause", "orders", "billing")
	require.Zero(t, code, problems)
	delivered := slices.Index(ids, before) + 1
	want := fmt.Sprintf("from ID to 0-0\n%d delivered again, 0 skipped\n0 pending, 0 deferred and 0 returned entries stay", delivered)
	s.same(want, append(args, "--dry-run")...)
	_, problems, code = s.run("billing\n", args...)
	require.Equal(t, exitError, code)
	require.Contains(t, problems, "nothing was done")
	require.Equal(t, before, s.client.XInfoGroups(t.Context(), "orders").Val()[0].LastDeliveredID)
	s.same("group billing reads from 0-0", append(args, "--confirm", "orders")...)
	require.Equal(t, "0-0", s.client.XInfoGroups(t.Context(), "orders").Val()[0].LastDeliveredID)
}

func idsOfOrders(t *testing.T, s *shell) (ids []string) {
	t.Helper()
	for _, entry := range s.client.XRange(t.Context(), "orders", "-", "+").Val() {
		ids = append(ids, entry.ID)
	}
	return ids
}
