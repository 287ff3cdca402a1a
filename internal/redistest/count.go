package redistest

import (
	"context"
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
