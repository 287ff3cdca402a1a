package main

import (
	"bytes"
	"context"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

func TestMain(m *testing.M) { redistest.Main(m) }

// ordersChild is the program itself, to be killed.
var ordersChild = redistest.ChildMain("orders", func() {
	os.Args = append([]string{"orders"}, strings.Split(os.Getenv("ORDERS_ARGS"), "\n")...)
	main()
})

// execute runs the program in this process.
func execute(redisURL, stdin string, args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = command{args, strings.NewReader(stdin), &out, &errs, redisURL}.run()
	return code, out.String(), errs.String()
}

// server returns a real server's URL and a client of it.
func server(t *testing.T) (string, *redis.Client) {
	s := redistest.Shared(t)
	opts := s.Options()
	u := url.URL{Scheme: "redis", Host: opts.Addr, Path: "/" + strconv.Itoa(opts.DB)}
	if opts.TLSConfig != nil {
		u.Scheme = "rediss"
	}
	if opts.Password != "" {
		u.User = url.UserPassword(opts.Username, opts.Password)
	}
	return u.String(), s.Client(t)
}

// summary is the part of the output that must not depend on what happened on the way.
func summary(t *testing.T, output string) string {
	t.Helper()
	_, after, ok := strings.Cut(output, "\nSummary\n")
	require.True(t, ok, output)
	before, after, ok := strings.Cut(after, "  in this run:")
	require.True(t, ok, output)
	_, verdict, _ := strings.Cut(after, "\n")
	return before + verdict
}

// sampleSummary is the last line of every import of the sample.
const sampleSummary = `  rows read           363
  handled             348
  dead-lettered        15

  currency  orders           amount
  CHF           30         9,681.17
  EUR          159       167,798.12
  GBP           55        52,740.92
  JPY           26        9,711,690
  PLN           17       100,947.09
  SEK           15        79,010.03
  USD           46        16,944.35


It adds up: 348 handled + 15 dead-lettered = 363 rows
`

// reasons are those of the sample's dead letters.
var reasons = []string{
	`quantity "-3" is not 1 to 10000`, `quantity "0" is not 1 to 10000`, `currency "XBT" is unknown`,
	`date "2026-02-30" does not exist`, `date "2026-13-04" does not exist`, "customer is missing",
	"malformed CSV: wrong number of fields", `malformed CSV: extraneous or missing " in quoted-field`,
	"panic: runtime error: index out of range [1] with length 1",
}

func requireSample(t *testing.T, code int, stdout, stderr string) {
	t.Helper()
	require.Zero(t, code, stdout+stderr)
	require.Empty(t, stderr)
	require.Equal(t, sampleSummary, summary(t, stdout))
	for _, reason := range reasons {
		require.Contains(t, stdout, "  "+reason+"\n")
	}
	require.Regexp(t, `order SO-48402 is on line (216|222) already`, stdout)
}

func TestSampleOnEmbeddedServer(t *testing.T) {
	t.Parallel()
	code, stdout, stderr := execute("", "")
	requireSample(t, code, stdout, stderr)
	require.Contains(t, stdout, "embedded server")
	// 363 rows, 2 that panic five times, 2 that outlast the retries of their first delivery.
	require.Contains(t, stdout, "in this run: 373 deliveries, 45 retries, 0 duplicates")
	require.Regexp(t, `(?m)^published 363/363 +handled 348 +dead-lettered 15 +retries 45$`, stdout)
}

// Bug: entries that wait for slow handlers are released; an embedded server that counts
// their way back as deliveries would make good orders dead letters.
func TestSlowHandlersOnEmbeddedServer(t *testing.T) {
	t.Parallel()
	code, stdout, stderr := execute("", "", "-slow", "300ms")
	requireSample(t, code, stdout, stderr)
}

func TestSampleOnRedis(t *testing.T) {
	t.Parallel()
	redisURL, client := server(t)
	topic := redistest.Key(t)
	code, stdout, stderr := execute(redisURL, "", "-topic", topic)
	requireSample(t, code, stdout, stderr)
	require.NotContains(t, stdout, "earlier run")

	// Once more: nothing is left to do, and the summary is the same.
	code, stdout, stderr = execute(redisURL, "", "-topic", topic)
	requireSample(t, code, stdout, stderr)
	require.Contains(t, stdout, "An earlier run has published up to line 364")
	require.Contains(t, stdout, "in this run: 0 deliveries, 0 retries, 0 duplicates")

	// The same rows from standard input are the same import.
	code, stdout, stderr = execute(redisURL, string(sample), "-topic", topic, "-")
	requireSample(t, code, stdout, stderr)
	require.Contains(t, stdout, "in this run: 0 deliveries")

	// An order that got lost does not go unnoticed.
	keys := client.Keys(t.Context(), topic+":*:handled").Val()
	require.Len(t, keys, 1)
	require.NoError(t, client.HDel(t.Context(), keys[0], "SO-48102").Err())
	code, _, stderr = execute(redisURL, "", "-topic", topic)
	require.Equal(t, exitFailed, code)
	require.Contains(t, stderr, "does not add up: 347 handled + 15 dead-lettered, but 363 rows")
}

func TestSummaryIsTheSameAfterKills(t *testing.T) {
	t.Parallel()
	const rows = 2000
	redisURL, client := server(t)
	file := filepath.Join(t.TempDir(), "orders.csv")
	require.NoError(t, os.WriteFile(file, []byte(manyOrders(rows)), 0o600))
	_, reference, _ := execute(redisURL, "", "-topic", redistest.Key(t, "reference"), file)
	want := summary(t, reference)
	require.Contains(t, want, "It adds up")

	prefix := redistest.Key(t)
	in, err := openInput(file, nil)
	require.NoError(t, err)
	in.close()
	keys := newNames(prefix, in.id)
	published := func() int { return int(client.XLen(t.Context(), keys.topic).Val()) }
	handled := func() int { return int(client.HLen(t.Context(), keys.handled).Val()) }
	for _, kill := range []struct {
		what  func() int
		above int
	}{
		{published, 0}, {published, rows / 2}, {handled, 100}, {handled, 300}, {handled, 301}, {handled, 1200},
	} {
		child := redistest.StartChild(t, ordersChild, "REDIS_URL="+redisURL,
			"ORDERS_ARGS="+strings.Join([]string{"-topic", prefix, "-slow", "3ms", file}, "\n"))
		redistest.Eventually(t, 30*time.Second, func() bool { return kill.what() > kill.above }, "more than %d rows", kill.above)
		child.Kill()
	}
	code, stdout, stderr := execute(redisURL, "", "-topic", prefix, file)
	require.Zero(t, code, stdout+stderr)
	require.Equal(t, want, summary(t, stdout))
	require.Equal(t, rows, published(), "a row was published twice")
}

// manyOrders repeats the sample's rows, good and bad, under new order IDs.
func manyOrders(rows int) string {
	lines := strings.Split(strings.TrimSpace(string(sample)), "\n")
	var b strings.Builder
	b.WriteString(header + "\n")
	for i := range rows {
		_, rest, _ := strings.Cut(lines[1+i%(len(lines)-1)], ",")
		b.WriteString("SO-" + strconv.Itoa(100_000+i) + "," + rest + "\n")
	}
	return b.String()
}

func TestInterruptIsGraceful(t *testing.T) {
	t.Parallel()
	redisURL, client := server(t)
	topic := redistest.Key(t)
	child := redistest.StartChild(t, ordersChild, "REDIS_URL="+redisURL, "ORDERS_ARGS=-topic\n"+topic+"\n-slow\n100ms")
	stream := strings.Fields(strings.ReplaceAll(child.WaitLine("Stream ", 30*time.Second), ",", " "))[0]
	redistest.Eventually(t, 30*time.Second, func() bool {
		return client.HLen(t.Context(), stream+":handled").Val() > 20
	}, "some orders")
	child.Terminate()
	child.WaitLine("Interrupted. The same command goes on from here.", 30*time.Second)
	var exit interface{ ExitCode() int }
	require.ErrorAs(t, child.Wait(30*time.Second), &exit)
	require.Equal(t, exitInterrupted, exit.ExitCode())

	// The handlers were let finish and their acknowledgements are written.
	code, stdout, stderr := execute(redisURL, "", "-topic", topic)
	requireSample(t, code, stdout, stderr)
	require.Contains(t, stdout, "0 duplicates")
}

// Orders that were handled and not acknowledged, and orders that were published twice, are
// delivered again.
func TestRepeatsChangeNothing(t *testing.T) {
	t.Parallel()
	redisURL, client := server(t)
	prefix := redistest.Key(t)
	in, err := openInput("", nil)
	require.NoError(t, err)
	imp := &importer{client: client, in: in, names: newNames(prefix, in.id)}

	rows, err := in.after(1)
	require.NoError(t, err)
	first, err := rows.next()
	require.NoError(t, err)
	o, err := parseOrder(first.text)
	require.NoError(t, err)
	_, now, err := books{client, imp.names}.enter(t.Context(), o, first.line)
	require.NoError(t, err)
	require.True(t, now)

	code, stdout, stderr := execute(redisURL, "", "-topic", prefix)
	requireSample(t, code, stdout, stderr)
	require.Contains(t, stdout, ", 1 duplicates that changed nothing")

	// Two publishers at once, say: line 18 is bad, line 364 is good.
	publisher, err := redischannels.NewPublisher(redischannels.PublisherConfig{Client: client}, nil)
	require.NoError(t, err)
	defer publisher.Close()
	lines := strings.Split(string(sample), "\n")
	require.NoError(t, publisher.Publish(imp.names.topic,
		imp.message(row{18, lines[17]}), imp.message(row{364, lines[363]})))
	code, stdout, stderr = execute(redisURL, "", "-topic", prefix)
	requireSample(t, code, stdout, stderr)
	require.Contains(t, stdout, "in this run: 2 deliveries, 0 retries, 1 duplicates")
	require.Contains(t, stdout, `quantity "-3" is not 1 to 10000 (again)`)
}

func TestOtherPeoplesStreamIsLeftAlone(t *testing.T) {
	t.Parallel()
	redisURL, client := server(t)
	prefix := redistest.Key(t)
	in, err := openInput("", nil)
	require.NoError(t, err)
	key := newNames(prefix, in.id).topic
	require.NoError(t, client.XAdd(context.Background(), &redis.XAddArgs{Stream: key, Values: []string{"a", "1"}}).Err())
	code, _, stderr := execute(redisURL, "", "-topic", prefix)
	require.Equal(t, exitFailed, code)
	require.Contains(t, stderr, "not from this import")
	require.EqualValues(t, 1, client.XLen(context.Background(), key).Val())
}

func TestBadInput(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
		return path
	}
	for _, tc := range []struct {
		name, url, stdin string
		args             []string
		code             int
		stderr           string
	}{
		{name: "missing file", args: []string{filepath.Join(dir, "nothing.csv")}, code: exitFailed, stderr: "nothing.csv: "},
		{name: "directory", args: []string{dir}, code: exitFailed, stderr: "is a directory"},
		{name: "empty file", args: []string{write("empty.csv", "")}, code: exitFailed, stderr: "empty.csv: is empty"},
		{name: "blank file", args: []string{write("blank.csv", "\n \n")}, code: exitFailed, stderr: "is empty"},
		{name: "header only", args: []string{write("header.csv", header+"\n")}, code: exitFailed, stderr: "has no rows"},
		{name: "no orders", args: []string{write("other.csv", "\nname;age\nAnna;3\n")}, code: exitFailed, stderr: "line 2: the first line must be order_id,"},
		{name: "binary", args: []string{write("binary.csv", "\x7fELF\x02\x00\xff\n")}, code: exitFailed, stderr: "line 1: the first line must be order_id,"},
		{name: "empty standard input", args: []string{"-"}, code: exitFailed, stderr: "standard input: is empty"},
		{name: "two files", args: []string{"a.csv", "b.csv"}, code: exitUsage, stderr: "one file at a time"},
		{name: "unknown flag", args: []string{"-x"}, code: exitUsage, stderr: "Usage: orders"},
		{name: "negative delay", args: []string{"-slow", "-1s"}, code: exitUsage, stderr: "-slow"},
		{name: "empty topic", args: []string{"-topic", ""}, code: exitUsage, stderr: "-topic"},
		{name: "braces", args: []string{"-topic", "{a}"}, code: exitUsage, stderr: "-topic"},
		{name: "no URL", url: "localhost:6379", code: exitFailed, stderr: "REDIS_URL must look like"},
		{name: "broken URL", url: "redis://user:secret@local host:1", code: exitFailed, stderr: "REDIS_URL must look like"},
		{name: "no server", url: "redis://:secret@127.0.0.1:1", code: exitFailed, stderr: "127.0.0.1:1 does not answer"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			code, stdout, stderr := execute(tc.url, tc.stdin, tc.args...)
			require.Equal(t, tc.code, code)
			require.Contains(t, stderr, tc.stderr)
			require.NotContains(t, stdout+stderr, "secret")
		})
	}
	code, _, stderr := execute("", "", "-h")
	require.Equal(t, exitOK, code)
	require.Contains(t, stderr, "REDIS_URL")
}
