package redistest

import (
	"context"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// countTimeout bounds one INFO or CONFIG of the counters.
const countTimeout = 10 * time.Second

// BlockedClients is the number of connections that wait in a blocking command, such as
// XREADGROUP with BLOCK (INFO clients, blocked_clients).
func BlockedClients(tb testing.TB, client redis.UniversalClient) int {
	tb.Helper()
	return infoInt(tb, client, "clients", "blocked_clients")
}

// Connections is the number of the server's client connections, the one that asks included
// (INFO clients, connected_clients).
func Connections(tb testing.TB, client redis.UniversalClient) int {
	tb.Helper()
	return infoInt(tb, client, "clients", "connected_clients")
}

// OutputBytes is how much the server has sent to its clients since its start or the last
// [ResetStats] (INFO stats, total_net_output_bytes).
func OutputBytes(tb testing.TB, client redis.UniversalClient) int {
	tb.Helper()
	return infoInt(tb, client, "stats", "total_net_output_bytes")
}

// CommandStats is how often the server has executed each command, by its name in lower case;
// a subcommand is "xgroup|create" (Redis 7) or counted with its command (6.2). A failed call
// counts, one that was rejected before its execution (arity, ACL) does not.
func CommandStats(tb testing.TB, client redis.UniversalClient) map[string]int64 {
	tb.Helper()
	stats := make(map[string]int64)
	for line := range strings.Lines(info(tb, client, "commandstats")) {
		name, rest, ok := strings.Cut(strings.TrimSpace(line), ":calls=")
		if !ok {
			continue
		}
		calls, _, _ := strings.Cut(rest, ",")
		n, err := strconv.ParseInt(calls, 10, 64)
		if err != nil {
			tb.Fatalf("redistest: commandstats: %q", line)
		}
		stats[strings.TrimPrefix(name, "cmdstat_")] = n
	}
	return stats
}

// ResetStats sets the server's counters to zero (CONFIG RESETSTAT). It belongs to a private
// server only.
func ResetStats(tb testing.TB, client redis.UniversalClient) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), countTimeout)
	defer cancel()
	if err := client.ConfigResetStat(ctx).Err(); err != nil {
		tb.Fatalf("redistest: CONFIG RESETSTAT: %v", err)
	}
}

func infoInt(tb testing.TB, client redis.UniversalClient, section, field string) int {
	tb.Helper()
	n, err := strconv.Atoi(infoField(info(tb, client, section), field))
	if err != nil {
		tb.Fatalf("redistest: INFO %s has no number %s: %v", section, field, err)
	}
	return n
}

func info(tb testing.TB, client redis.UniversalClient, section string) string {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), countTimeout)
	defer cancel()
	text, err := client.Info(ctx, section).Result()
	if err != nil {
		tb.Fatalf("redistest: INFO %s: %v", section, err)
	}
	return text
}

// infoField returns the value of "field:value" in the text of INFO.
func infoField(text, field string) string {
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, field+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// GoroutineCount compares the goroutines of the library with those at its making.
type GoroutineCount struct {
	tb    testing.TB
	match []string
	start int
}

// Goroutines counts the goroutines whose stack, the line "created by" included, contains one
// of the words. Without words they are the goroutines of this module except its tests, this
// kit and the examples. Goroutines of the library that other tests run at the same time count
// too, so a test that uses it does not run in parallel.
func Goroutines(tb testing.TB, words ...string) *GoroutineCount {
	if len(words) == 0 {
		words = []string{
			"github.com/flaminco/redischannels.",
			"github.com/flaminco/redischannels/internal/",
			"github.com/flaminco/redischannels/sse.",
			"github.com/flaminco/redischannels/compat.",
		}
	}
	g := &GoroutineCount{tb: tb, match: words}
	g.start = g.Now()
	return g
}

// Now is the number of such goroutines at this moment.
func (g *GoroutineCount) Now() int { return len(g.stacks()) }

// Start is the number of such goroutines when g was made.
func (g *GoroutineCount) Start() int { return g.start }

// Wait returns when there are no more goroutines than at the start, and fails the test with
// their stacks when that takes longer than timeout.
func (g *GoroutineCount) Wait(timeout time.Duration) {
	g.tb.Helper()
	if !poll(timeout, func() bool { return g.Now() <= g.start }) {
		stacks := g.stacks()
		g.tb.Fatalf("redistest: %d goroutines %s after the end, %d at the start:\n\n%s",
			len(stacks), timeout, g.start, strings.Join(stacks, "\n\n"))
	}
}

// stacks returns the stack of each goroutine that g counts.
func (g *GoroutineCount) stacks() []string {
	buf := make([]byte, 1<<20)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) {
			buf = buf[:n]
			break
		}
		buf = make([]byte, 2*len(buf))
	}
	var found []string
	for stack := range strings.SplitSeq(string(buf), "\n\n") {
		// A goroutine of a test is in the library while it calls it; it is not the library's.
		if strings.Contains(stack, "testing.tRunner(") || strings.Contains(stack, "testing.(*M).Run(") {
			continue
		}
		for line := range strings.Lines(stack) {
			if !strings.Contains(line, "/internal/redistest") && containsAny(line, g.match) {
				found = append(found, stack)
				break
			}
		}
	}
	return found
}

func containsAny(s string, words []string) bool {
	for _, w := range words {
		if strings.Contains(s, w) {
			return true
		}
	}
	return false
}
