package tests

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// A missing permission shows when the first message comes, or never: as a line in a log.
// Every command that is needed is denied once.
func TestACL_MissingPermissionIsAnErrorOfSubscribe(t *testing.T) {
	t.Parallel()
	needed := map[string][]string{
		"Subscribe": {
			"xgroup|create", "xgroup|delconsumer", "xreadgroup", "xpending", "xclaim", "xack", "xautoclaim",
			"xrange", "xinfo|consumers", "xinfo|groups", "xinfo|stream", "xgroup|destroy", "xlen", "evalsha", "xadd",
			"xrevrange", "xdel", // of the dead-letter stream
			"time", "type", "get", "set", "hget", "hset", "hstrlen", "hdel", "zrange", "zrangebyscore", "zrem", // of delayed messages
		},
		"Subscribe, fan-out":  {"xread", "xinfo|stream", "evalsha"},
		"SubscribeInitialize": {"xgroup|create"},
		"History":             {"xrange", "xinfo|stream", "evalsha"},
		"Publish":             {"xadd"},
		"Publish many":        {"xadd", "multi", "exec"},
		"Append":              {"xadd"},
	}
	redis7 := redistest.IsRedis7(t, redistest.Shared(t).Client(t))
	rules := []string{"elsewhere on >secret ~elsewhere:* +@all"}
	users := map[string]string{}
	for _, commands := range needed {
		for _, command := range commands {
			user := strings.ReplaceAll("no-"+command, "|", "-")
			if users[command] == "" {
				users[command] = user
				rules = append(rules, fmt.Sprintf("%s on >secret ~* +@all %s", user, without(redis7, command)))
			}
		}
	}
	server := redistest.Start(t, redistest.WithACL(rules...))
	admin := server.Admin(t)

	for name, commands := range needed {
		for _, command := range append(commands, "") {
			user := users[command]
			title := name + " without " + command
			if command == "" { // all commands, on other keys
				user, title = "elsewhere", name+" of a foreign key"
			}
			t.Run(title, func(t *testing.T) {
				t.Parallel()
				topic := redistest.Key(t)
				publish(t, admin, topic, "m", "n")
				call := calls(t, server.Client(t, redistest.As(user, "secret")))[name]
				err := within(t, func() error { return call(topic) })
				require.ErrorIs(t, err, redischannels.ErrPermission)
				require.ErrorContains(t, err, topic)
				switch {
				case name != "Subscribe":
				case command == "", command == "xgroup|create", command == "hget", command == "hset": // there is no group
				case command == "xgroup|delconsumer", command == "xpending", command == "evalsha": // it cannot
				default:
					require.Empty(t, consumersOf(t, admin, topic), "nothing is left behind")
				}
			})
		}
	}
	redistest.Eventually(t, soon, func() bool { return redistest.BlockedClients(t, admin) == 0 }, "nothing reads")
}

// without is a rule that takes a command away. Before Redis 7 a subcommand can only be given, so
// its command is taken away and the other subcommands that the library sends are returned.
func without(redis7 bool, command string) string {
	rule := "-" + command
	if name, _, ok := strings.Cut(command, "|"); ok && !redis7 {
		rule = "-" + name
		for _, other := range []string{
			"xgroup|create", "xgroup|delconsumer", "xgroup|destroy", "xinfo|consumers", "xinfo|groups", "xinfo|stream",
			"client|id", "client|unblock", "client|setname", "client|setinfo",
		} {
			if strings.HasPrefix(other, name+"|") && other != command {
				rule += " +" + other
			}
		}
	}
	return rule
}

// Permissions that only make something better: without them it works as well.
func TestACL_OptionalPermissions(t *testing.T) {
	t.Parallel()
	denied := []string{"client|id", "client|unblock", "client|setname", "info", "hello", "command"}
	redis7 := redistest.IsRedis7(t, redistest.Shared(t).Client(t))
	var rules []string
	for _, command := range denied {
		rules = append(rules, fmt.Sprintf("no-%s on >secret ~* +@all %s", strings.ReplaceAll(command, "|", "-"), without(redis7, command)))
	}
	server := redistest.Start(t, redistest.WithACL(rules...))
	for _, command := range denied {
		t.Run("without "+command, func(t *testing.T) {
			t.Parallel()
			client := server.Client(t, redistest.As("no-"+strings.ReplaceAll(command, "|", "-"), "secret"))
			topic := redistest.Key(t)
			long := tuned(func(c *redischannels.Tuning) { c.BlockTime, c.MinIdle = 20*time.Second, time.Minute })
			group, all := newSub(t, client, long, deliveries(1)), newSub(t, client, long, fanOut)
			messages, every := group.subscribe(t, topic), all.subscribe(t, topic)
			publish(t, client, topic, "a", "b")
			require.Equal(t, []string{"a"}, receiveAcked(t, messages, 1))
			receive(t, messages).Nack()
			group.events.wait(t, redischannels.EventDeadLettered)
			require.Equal(t, []string{"a", "b"}, receiveAcked(t, every, 2))
			require.Less(t, group.closeSoon(t), 5*time.Second, "as long as a read may block")
			require.Less(t, all.closeSoon(t), 5*time.Second, "as long as a read may block")
			group.events.none(t, redischannels.EventError, redischannels.EventDisconnected)
			require.Empty(t, pendingOf(t, server.Admin(t), topic))
		})
	}
}
