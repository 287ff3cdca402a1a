package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

var binary string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "redch")
	if err != nil {
		panic(err)
	}
	binary = filepath.Join(dir, "redch")
	if out, err := exec.Command("go", "build", "-o", binary, ".").CombinedOutput(); err != nil {
		panic(string(out))
	}
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// shell runs the command against a server.
type shell struct {
	t      *testing.T
	server *redistest.Server
	client *redis.Client
}

func newShell(t *testing.T) *shell {
	t.Helper()
	server := redistest.Start(t)
	return &shell{t, server, server.Client(t)}
}

// run returns what a command prints, and its exit code. Standard input is typed.
func (s *shell) run(typed string, args ...string) (out, problems string, code int) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Env = append(os.Environ(), "REDCH_URL=redis://"+s.server.Addr(), "REDCH_ACTOR=tester", "COLUMNS=80")
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(typed), &stdout, &stderr
	err := cmd.Run()
	if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
		require.NoError(s.t, err)
	}
	for line := range strings.Lines(stdout.String()) {
		if !tables.MatchString(stdout.String()) {
			break
		}
		require.LessOrEqual(s.t, utf8.RuneCountInString(strings.TrimSpace(line)), 80, line)
	}
	return stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()
}

// tables begin with titles.
var tables = regexp.MustCompile(`^[A-Z]+( |\n)`)

var (
	entryIDs = regexp.MustCompile(`\d{13}-\d+`)
	dates    = regexp.MustCompile(`\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?Z?`)
	ages     = regexp.MustCompile(`\b\d+s\b`)
	memory   = regexp.MustCompile(`\d+(\.\d)? (K|M)?i?B\b`)
	spaces   = regexp.MustCompile(` +`)
)

// same checks the output of a command, in which IDs, times, ages, sizes and widths are left out.
func (s *shell) same(want string, args ...string) {
	s.t.Helper()
	out, problems, code := s.run("", args...)
	require.Zero(s.t, code, problems)
	for _, r := range []struct {
		what *regexp.Regexp
		by   string
	}{{entryIDs, "ID"}, {dates, "DATE"}, {ages, "AGE"}, {memory, "SIZE"}, {spaces, " "}} {
		out = r.what.ReplaceAllString(out, r.by)
	}
	require.Equal(s.t, strings.TrimSpace(want), strings.TrimSpace(out))
}

// shop makes a topic with a group that has handled, pending, dead and delayed messages.
func (s *shell) shop() (entry string) {
	s.t.Helper()
	ctx := s.t.Context()
	sub, err := redischannels.NewSubscriber(redischannels.SubscriberConfig{Client: s.client, ConsumerGroup: "billing", Consumer: "web"}, watermill.NopLogger{})
	require.NoError(s.t, err)
	messages, err := sub.Subscribe(ctx, "orders")
	require.NoError(s.t, err)
	out, problems, code := s.run("", "produce", "orders", `{"id":1}`, "-m", "name=order.placed", "--uuid", "u-1")
	require.Zero(s.t, code, problems)
	for _, reason := range []string{"timeout", "no such customer", "timeout"} {
		_, problems, code := s.run("poison\n", "produce", "orders")
		require.Zero(s.t, code, problems)
		for first := true; first || reason != ""; first = false {
			msg := <-messages
			if string(msg.Payload) == `{"id":1}` {
				msg.Ack()
				continue
			}
			redischannels.Reject(msg, reason)
			msg.Nack()
			reason = ""
		}
	}
	redistest.Eventually(s.t, 10*time.Second, func() bool { return s.client.XLen(ctx, "{orders}:dead").Val() == 3 }, "three dead letters")
	require.NoError(s.t, sub.Close())
	pub, err := redischannels.NewPublisher(redischannels.PublisherConfig{Client: s.client}, watermill.NopLogger{})
	require.NoError(s.t, err)
	later := message.NewMessage("u-2", []byte("later"))
	later.Metadata.Set("_watermill_delayed_until", time.Now().Add(48*time.Hour+30*time.Minute).UTC().Format(time.RFC3339))
	later.Metadata.Set("_watermill_delayed_for", "48h30m0s")
	require.NoError(s.t, pub.Publish("orders", later, message.NewMessage("u-3", []byte("waiting")), message.NewMessage("u-4", []byte("new"))))
	require.NoError(s.t, pub.Close())
	require.NoError(s.t, s.client.XReadGroup(ctx, &redis.XReadGroupArgs{Group: "billing", Consumer: "crashed", Streams: []string{"orders", ">"}, Count: 1}).Err())
	return strings.TrimSpace(out)
}

// Every read prints what there is, in 80 columns.
func TestRedch_Reads(t *testing.T) {
	s := newShell(t)
	id := s.shop()
	s.same(`
TOPIC ENTRIES MEMORY LAST GROUPS DELAYED DEAD
orders 6 SIZE AGE 1 1 3`, "topics")
	s.same(`TOPIC ENTRIES MEMORY LAST GROUPS DELAYED DEAD`, "topics", "x*")
	s.same(`
GROUP LAG PENDING OLDEST ALIVE STATE
billing 1 1 AGE 1/1 live`, "groups", "orders")
	s.same(`
CONSUMER PENDING IDLE ALIVE
crashed 1 AGE yes`, "consumers", "orders", "billing")
	s.same(`
ID CONSUMER IDLE DELIVERIES
ID crashed AGE 1`, "pending", "orders", "billing")
	s.same(`
id ID
time DATE
bytes 68
uuid u-1
metadata name = order.placed
payload {"id":1}`, "show", "orders", id)
	s.same(`
ID poison\n
ID waiting
ID new`, "tail", "orders", "-n", "3", "--no-follow")
	s.same(`
GROUP COUNT FIRST LAST NEWEST ID REASON
billing 2 AGE AGE ID timeout
billing 1 AGE AGE ID no such customer`, "dead", "reasons", "orders")
	s.same(`
ID AGE GROUP ENTRY N REASON
ID AGE billing ID 1 timeout
ID AGE billing ID 1 no such customer
ID AGE billing ID 1 timeout`, "dead", "list", "orders")
	s.same(`
ID DUE IN DUE
ID 2d0h DATE`, "delayed", "orders")
	s.same(`ENTRY DUE IN DELIVERIES REASON`, "delayed", "orders", "billing")
	s.same(`ID WHEN NEXT IN STATE LAST`, "schedules", "orders")
	s.same(`TIME WHO ACTION GROUP DETAILS`, "audit", "orders")

	out, _, code := s.run("", "groups", "orders", "-o", "json")
	require.Zero(t, code)
	var groups []map[string]any
	require.NoError(t, json.Unmarshal([]byte(out), &groups))
	require.Len(t, groups, 1)
	require.Equal(t, "billing", groups[0]["group"])
	require.Equal(t, map[string]any{"atLeast": 1.0, "atMost": 1.0}, groups[0]["lag"])
	for _, args := range [][]string{
		{"topics"}, {"consumers", "orders", "billing"}, {"pending", "orders", "billing"}, {"show", "orders", id}, {"tail", "orders", "-n", "1", "--no-follow"},
		{"dead", "reasons", "orders"}, {"dead", "list", "orders"}, {"delayed", "orders"}, {"schedules", "orders"}, {"audit", "orders"}, {"doctor"}, {"acl", "orders"}, {"trim", "orders", "--dry-run"},
	} {
		out, _, _ := s.run("", append(args, "-o", "json")...)
		require.True(t, json.Valid([]byte(out)), "%v: %s", args, out)
	}
}

// Every action changes what its dry run prints, and is in the audit.
func TestRedch_Actions(t *testing.T) {
	s := newShell(t)
	s.shop()
	s.same("group billing of orders would be paused", "pause", "orders", "billing", "--dry-run")
	s.same("group billing of orders paused", "pause", "orders", "billing", "--for", "1h30m", "--reason", "the bank is down")
	out, _, _ := s.run("", "groups", "orders")
	require.Regexp(t, `paused for 1h(30|29)m`, out)
	s.same("group billing of orders resumed", "resume", "orders", "billing")

	s.same("ID\nID\n2 dead letters would be requeued", "dead", "requeue", "orders", "--reason", "timeout", "--dry-run")
	s.same("2 of 2 dead letters were requeued", "dead", "requeue", "orders", "--reason", "timeout", "--rate", "100")
	out, problems, code := s.run("shop\n", "dead", "purge", "orders")
	require.Equal(t, exitError, code)
	require.Contains(t, out, "1 dead letters of orders will be deleted. This cannot be undone.")
	require.Contains(t, problems, `nothing was done: "shop" is not the name of the topic`)
	require.EqualValues(t, 1, s.client.XLen(t.Context(), "{orders}:dead").Val())
	out, _, code = s.run("orders\n", "dead", "purge", "orders")
	require.Zero(t, code)
	require.Contains(t, out, "1 of 1 dead letters were purged")
	s.same("0 of 0 dead letters were purged", "dead", "purge", "orders", "--confirm", "orders")

	pending := s.client.XPendingExt(t.Context(), &redis.XPendingExtArgs{Stream: "orders", Group: "billing", Start: "-", End: "+", Count: 1}).Val()[0].ID
	require.NoError(t, s.client.HSet(t.Context(), "{orders}:control", "min-idle:billing", 1).Err())
	s.same("entry ID (delivered 1 times, last to crashed) would be skipped", "skip", "orders", "billing", pending, "--dry-run")
	s.same("entry ID (delivered 1 times, last to crashed) skipped: dead letter ID", "skip", "orders", "billing", pending, "--reason", "bad address")
	out, _, code = s.run("", "dead", "show", "orders", s.client.XRange(t.Context(), "{orders}:dead", "-", "+").Val()[0].ID)
	require.Zero(t, code)
	require.Contains(t, out, "reason    bad address")
	require.Contains(t, out, "payload   waiting")
	s.same("consumer crashed would be removed, 0 entries released", "remove", "orders", "billing", "crashed", "--dry-run")
	s.same("consumer crashed was removed, 0 entries released", "remove", "orders", "billing", "crashed")
	s.same(`
TIME WHO ACTION GROUP DETAILS
DATE tester remove consumer billing consumer=crashed release…
DATE tester skip billing consumer=crashed entry=1…
DATE tester purge ended changed=1 matched=1
DATE tester purge matched=1 reason=
DATE tester requeue ended changed=2 matched=2
DATE tester requeue matched=2 reason=timeout
DATE tester resume billing`, "audit", "orders", "-n", "7")
}

// Exit codes say what has happened, and errors what to do.
func TestRedch_ExitCodes(t *testing.T) {
	s := newShell(t)
	s.shop()
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"--help"}, exitOK, ""},
		{[]string{"nonsense"}, exitUsage, "nonsense"},
		{[]string{"groups"}, exitUsage, "topic"},
		{[]string{"topics", "--limit=-1"}, exitUsage, "must be above 0"},
		{[]string{"show", "orders", "x"}, exitUsage, "must be an entry ID such as 1700000000000-0"},
		{[]string{"show", "orders", "1-1"}, exitError, "no such entry"},
		{[]string{"groups", "shop"}, exitError, "no such topic"},
		{[]string{"pause", "orders", "shop"}, exitError, "are: billing"},
		{[]string{"--url", "redis://localhost:1", "topics"}, exitError, "refused"},
		{[]string{"check", "orders", "billing"}, exitOK, ""},
		{[]string{"check", "orders", "billing", "--max-backlog", "1"}, exitCheck, ""},
	} {
		_, problems, code := s.run("", c.args...)
		require.Equal(t, c.code, code, "%v: %s", c.args, problems)
		require.Contains(t, problems, c.says, c.args)
	}
	s.same("ok: lag 1, pending 1", "check", "orders", "billing", "--max-backlog", "2")
	out, _, _ := s.run("", "check", "orders", "billing", "--max-backlog", "1", "--min-alive", "2")
	require.Equal(t, "failed: the backlog is 2, more than 1; 1 consumers are alive, fewer than 2\n", out)
}

// Every command has a help with an example.
func TestRedch_HelpHasExamples(t *testing.T) {
	s := newShell(t)
	for _, command := range []string{
		"topics", "groups", "consumers", "pending", "show", "tail", "produce", "dead reasons", "dead list", "dead show", "dead requeue", "dead purge",
		"pause", "resume", "skip", "delayed", "schedules", "remove", "remove-group", "audit", "trim", "doctor", "acl", "check",
	} {
		out, _, code := s.run("", append(strings.Fields(command), "--help")...)
		require.Zero(t, code)
		require.Regexp(t, `Examples?: redch `+command, out)
	}
}

// Long names are cut in tables, and what would change a terminal is quoted.
func TestRedch_HostileNames(t *testing.T) {
	s := newShell(t)
	name := "a\x1b[31m" + strings.Repeat("very-long-", 20)
	require.NoError(t, s.client.XAdd(t.Context(), &redis.XAddArgs{Stream: name, Values: []string{"a", "\x1b]0;title\a\x9b31m"}}).Err())
	require.NoError(t, s.client.XGroupCreate(t.Context(), name, "\x9b31m"+strings.Repeat("group", 40), "0").Err())
	for _, args := range [][]string{{"topics"}, {"groups", name}, {"tail", name, "--no-follow"}, {"show", name, s.client.XRange(t.Context(), name, "-", "+").Val()[0].ID}} {
		out, problems, code := s.run("", args...)
		require.Zero(t, code, problems)
		require.NotContains(t, out, "\x1b")
		require.NotContains(t, out, "\a")
		require.NotContains(t, out, "\x9b")
	}
}

// tail continues with new messages until it is interrupted.
func TestRedch_TailFollows(t *testing.T) {
	s := newShell(t)
	cmd := exec.Command(binary, "--url", "redis://"+s.server.Addr(), "tail", "orders")
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	pub, err := redischannels.NewPublisher(redischannels.PublisherConfig{Client: s.client}, watermill.NopLogger{})
	require.NoError(t, err)
	defer pub.Close()
	line := make([]byte, 100)
	for _, payload := range []string{"hello", "again"} { // the second one while it follows
		require.NoError(t, pub.Publish("orders", message.NewMessage("u", []byte(payload))))
		n, err := out.Read(line)
		require.NoError(t, err)
		require.Contains(t, string(line[:n]), payload)
	}
	require.NoError(t, cmd.Process.Signal(os.Interrupt))
	require.NoError(t, cmd.Wait())
}
