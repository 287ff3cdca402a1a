package tests

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/inspect"
	"github.com/flaminco/redischannels/internal/keys"
	"github.com/flaminco/redischannels/internal/redistest"
	"github.com/flaminco/redischannels/internal/retention"
)

// topicFindings returns what the doctor finds in topics, by the names of its checks.
func topicFindings(t *testing.T, client redis.UniversalClient, query inspect.DoctorQuery) map[string]inspect.Finding {
	t.Helper()
	findings, err := newInspector(t, client).Doctor(t.Context(), query)
	require.NoError(t, err)
	found := make(map[string]inspect.Finding)
	for _, f := range findings {
		if f.Node == "" {
			require.NotEmpty(t, f.Problem)
			require.NotEmpty(t, f.Action)
			found[f.Check] = f
		}
	}
	return found
}

// sick is a topic orders in a state that the doctor finds, and a variant that it does not.
type sick struct {
	check    string
	severity inspect.Severity
	group    string
	problem  string
	make     func(t *testing.T, client *redis.Client, healthy bool)
}

func group(t *testing.T, client *redis.Client, name, start string) {
	t.Helper()
	require.NoError(t, client.XGroupCreateMkStream(t.Context(), "orders", name, start).Err())
}

// alive keeps a subscription of the group g on the topic.
func alive(t *testing.T, client *redis.Client) {
	t.Helper()
	newSub(t, client).subscribe(t, "orders")
}

// due stores the ID of a message that is due at a time.
func due(t *testing.T, client *redis.Client, key string, at time.Time) {
	t.Helper()
	require.NoError(t, client.ZAdd(t.Context(), key, redis.Z{Score: float64(at.UnixMilli()), Member: "1-1"}).Err())
}

// trimWith trims as a program with the policy does.
func trimWith(t *testing.T, client *redis.Client, policy retention.Policy) {
	t.Helper()
	of, err := keys.Of("orders", nil, false)
	require.NoError(t, err)
	_, err = retention.Trim(t.Context(), client, of, "test", policy.String())
	require.NoError(t, err)
}

var sicknesses = []sick{
	{"consumers", inspect.SeverityInfo, "g", "no consumer that is alive", func(t *testing.T, client *redis.Client, healthy bool) {
		publish(t, client, "orders", "a")
		group(t, client, "g", "$")
		if healthy {
			alive(t, client)
		}
	}},
	{"consumers", inspect.SeverityWarning, "g", "backlog is at least 1", func(t *testing.T, client *redis.Client, healthy bool) {
		publish(t, client, "orders", "a")
		group(t, client, "g", "0")
		if healthy {
			require.NoError(t, newInspector(t, client).Pause(t.Context(), "orders", "g", inspect.PauseOptions{}))
		}
	}},
	{"crashed", inspect.SeverityWarning, "g", "2 pending entries of crashed consumers were not claimed: c-1", func(t *testing.T, client *redis.Client, healthy bool) {
		publish(t, client, "orders", "a", "b")
		deliverTo(t, client, "orders", "c-1", 2, 0)
		if !healthy {
			require.NoError(t, client.HSet(t.Context(), "{orders}:control", "min-idle:g", 1).Err())
			redistest.Eventually(t, soon, func() bool {
				return client.XInfoConsumers(t.Context(), "orders", "g").Val()[0].Idle > 3*time.Millisecond
			}, "the consumer is idle")
		}
	}},
	{"mixed", inspect.SeverityWarning, "g", "nPXzFw4x", func(t *testing.T, client *redis.Client, healthy bool) {
		alive(t, client)
		if !healthy {
			require.NoError(t, client.XGroupCreateConsumer(t.Context(), "orders", "g", "nPXzFw4x").Err())
		}
	}},
	{"overdue", inspect.SeverityWarning, "", "delayed message 1-1", func(t *testing.T, client *redis.Client, healthy bool) {
		publish(t, client, "orders", "a")
		at := serverTime(t, client).Add(-2 * time.Minute)
		if healthy {
			at = serverTime(t, client).Add(-time.Second)
		}
		due(t, client, "{orders}:due", at)
	}},
	{"overdue", inspect.SeverityWarning, "g", "retry 1-1", func(t *testing.T, client *redis.Client, healthy bool) {
		group(t, client, "g", "0")
		at := serverTime(t, client).Add(-2 * time.Minute)
		if healthy {
			at = at.Add(time.Hour)
		}
		due(t, client, "{orders}:due:g", at)
	}},
	{"dead-letters", inspect.SeverityWarning, "", "there are 10000 dead letters", func(t *testing.T, client *redis.Client, healthy bool) {
		publish(t, client, "orders", "a")
		count := 10_000
		if healthy {
			count--
		}
		require.NoError(t, client.Eval(t.Context(), "for i = 1, ARGV[1] do redis.call('XADD', KEYS[1], '*', 'a', 'b') end return 1", []string{"{orders}:dead"}, count).Err())
	}},
	{"pin", inspect.SeverityWarning, "g", "no progress", func(t *testing.T, client *redis.Client, healthy bool) {
		publish(t, client, "orders", "a")
		group(t, client, "g", "0")
		policy := retention.Policy{StaleAfter: time.Millisecond}
		if healthy {
			policy.StaleAfter = time.Hour
		}
		trimWith(t, client, policy)
		begun := serverTime(t, client)
		redistest.Eventually(t, soon, func() bool { return serverTime(t, client).Sub(begun) > 5*time.Millisecond }, "some ms")
	}},
	{"pin", inspect.SeverityWarning, "g", "was deleted", func(t *testing.T, client *redis.Client, healthy bool) {
		publish(t, client, "orders", "a")
		group(t, client, "g", "0")
		trimWith(t, client, retention.Policy{StaleAfter: time.Hour})
		if !healthy {
			require.NoError(t, client.XGroupDestroy(t.Context(), "orders", "g").Err())
		}
	}},
	{"pin", inspect.SeverityWarning, "billing", "does not exist", func(t *testing.T, client *redis.Client, healthy bool) {
		publish(t, client, "orders", "a")
		group(t, client, "g", "0")
		if healthy {
			group(t, client, "billing", "0")
		}
		trimWith(t, client, retention.Policy{StaleAfter: time.Hour, Groups: []string{"billing"}})
	}},
}

// Each state of a topic or a group that the doctor is for is found, with its name, and the one next to it is not.
func TestDoctor_Topics(t *testing.T) {
	t.Parallel()
	for _, s := range sicknesses {
		for _, healthy := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/%s/healthy=%t", s.check, s.problem, healthy), func(t *testing.T) {
				t.Parallel()
				client := redistest.Start(t).Client(t)
				s.make(t, client, healthy)
				f, found := topicFindings(t, client, inspect.DoctorQuery{})[s.check]
				if healthy && s.severity != inspect.SeverityInfo && f.Severity == inspect.SeverityInfo {
					found = false
				}
				require.Equal(t, !healthy, found, "%+v", f)
				if healthy {
					return
				}
				require.Equal(t, s.severity, f.Severity)
				require.Equal(t, "orders", f.Topic)
				require.Equal(t, s.group, f.Group)
				require.Contains(t, f.Problem, s.problem)
			})
		}
	}
}

// A topic with a subscription that has nothing to do is healthy.
func TestDoctor_HealthyTopic(t *testing.T) {
	t.Parallel()
	client := redistest.Start(t).Client(t)
	sub := newSub(t, client)
	messages := sub.subscribe(t, "orders")
	publish(t, client, "orders", "a")
	receive(t, messages).Ack()
	redistest.Eventually(t, soon, func() bool { return client.XPending(t.Context(), "orders", "g").Val().Count == 0 }, "acknowledged")
	require.Empty(t, topicFindings(t, client, inspect.DoctorQuery{}))
}

// A group of another library alone mixes nothing.
func TestDoctor_OtherLibraryAlone(t *testing.T) {
	t.Parallel()
	client := redistest.Start(t).Client(t)
	group(t, client, "g", "0")
	require.NoError(t, client.XGroupCreateConsumer(t.Context(), "orders", "g", "nPXzFw4x").Err())
	require.Empty(t, topicFindings(t, client, inspect.DoctorQuery{}))
}

// The doctor checks so many topics and groups, and reports that there are more.
func TestDoctor_Limit(t *testing.T) {
	t.Parallel()
	client := redistest.Start(t).Client(t)
	for n := range 4 {
		require.NoError(t, client.XGroupCreateMkStream(t.Context(), fmt.Sprint("topic-", n), "g", "0").Err())
	}
	f := topicFindings(t, client, inspect.DoctorQuery{Limit: 7})["limit"]
	require.Equal(t, inspect.SeverityInfo, f.Severity)
	require.Contains(t, f.Problem, "only 7 topics and groups")
	require.NotContains(t, topicFindings(t, client, inspect.DoctorQuery{Limit: 8}), "limit")
	found := topicFindings(t, client, inspect.DoctorQuery{Limit: 2, Match: "topic-3"})
	require.NotContains(t, found, "limit")
	require.Equal(t, "topic-3", found["consumers"].Topic)
	for n := range 3 {
		publish(t, client, fmt.Sprint("no-group-", n), "a")
	}
	require.Contains(t, topicFindings(t, client, inspect.DoctorQuery{Limit: 2, Match: "no-*"}), "limit")
	require.NotContains(t, topicFindings(t, client, inspect.DoctorQuery{Limit: 3, Match: "no-*"}), "limit")
	_, err := newInspector(t, client).Doctor(t.Context(), inspect.DoctorQuery{Limit: -1})
	require.ErrorIs(t, err, redischannels.ErrInvalidArgument)
	require.ErrorContains(t, err, "DoctorQuery.Limit: invalid argument: must be above 0, or 0 for 1000, got -1")
}

// The topics of every master of a cluster are checked.
func TestDoctor_TopicsOfACluster(t *testing.T) {
	t.Parallel()
	client := redistest.StartCluster(t, 3).Client(t)
	var want []string
	for n := range 12 {
		topic := fmt.Sprint("topic-", n)
		require.NoError(t, client.XGroupCreateMkStream(t.Context(), topic, "g", "0").Err())
		want = append(want, topic)
	}
	findings, err := newInspector(t, client).Doctor(t.Context(), inspect.DoctorQuery{})
	require.NoError(t, err)
	var got []string
	for _, f := range findings {
		if f.Node == "" {
			require.Equal(t, "consumers", f.Check)
			got = append(got, f.Topic)
		}
	}
	require.ElementsMatch(t, want, got)
}

// A server without redis.acl_check_cmd cannot say what is missing, and so does the doctor.
func TestDoctor_PermissionsUnknown(t *testing.T) {
	t.Parallel()
	client := redistest.Start(t).Client(t)
	require.NoError(t, client.XGroupCreateMkStream(t.Context(), "orders", "g", "0").Err())
	client.AddHook(withoutACLCheck{})
	p, err := newInspector(t, client).Permissions(t.Context(), "orders", "g", inspect.RoleConsumer)
	require.NoError(t, err)
	require.False(t, p.Known)
	require.Empty(t, p.Missing)
	f := topicFindings(t, client, inspect.DoctorQuery{})["acl"]
	require.Equal(t, inspect.SeverityInfo, f.Severity)
	require.Contains(t, f.Problem, "was not checked")
}

// withoutACLCheck is a server before Redis 7.0, as far as scripts see it.
type withoutACLCheck struct{}

func (withoutACLCheck) DialHook(next redis.DialHook) redis.DialHook { return next }

func (withoutACLCheck) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (withoutACLCheck) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if args := cmd.Args(); cmd.Name() == "eval" { // as the first time each script is
			args[1] = strings.Replace(args[1].(string), "redis.acl_check_cmd", "nil", 1)
		}
		return next(ctx, cmd)
	}
}

// asUser returns a client of a new user with these permissions, on the topic orders.
func asUser(t *testing.T, server *redistest.Server, name string, words ...string) *redis.Client {
	t.Helper()
	args := []any{"acl", "setuser", name, "reset", "on", ">change-me"}
	for _, word := range words {
		if strings.ContainsAny(word[:1], "+-~") {
			args = append(args, word)
		}
	}
	require.NoError(t, server.Admin(t).Do(t.Context(), args...).Err())
	return server.Client(t, redistest.As(name, "change-me"))
}

// The missing permissions of a subscription are named; a user that is no consumer lacks none.
func TestDoctor_LackingPermissions(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	admin := server.Admin(t)
	redistest.NeedsRedis7(t, admin, "redis.acl_check_cmd")
	require.NoError(t, admin.XGroupCreateMkStream(t.Context(), "orders", "g", "0").Err())
	rules := documentedRules(t)
	both := append(append([]string{}, rules["doctor"]...), rules["consumer"]...)
	require.NotContains(t, topicFindings(t, asUser(t, server, "whole", both...), inspect.DoctorQuery{}), "acl")
	require.NotContains(t, topicFindings(t, asUser(t, server, "doctor", rules["doctor"]...), inspect.DoctorQuery{}), "acl")
	f := topicFindings(t, asUser(t, server, "lacking", append(both, "-xack", "-xgroup|destroy")...), inspect.DoctorQuery{})["acl"]
	require.Equal(t, inspect.SeverityWarning, f.Severity)
	require.Equal(t, "g", f.Group)
	require.Contains(t, f.Problem, ": +xgroup|destroy +xack")
}

// The rule of each role is that of the documentation, and each of its permissions is named where it is missing.
func TestPermissions(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	redistest.NeedsRedis7(t, server.Admin(t), "redis.acl_check_cmd")
	rules := documentedRules(t)
	for _, role := range inspect.Roles() {
		words := rules[string(role)][2:] // behind on and the password
		scripts := []string{"+evalsha", "+eval"}
		p, err := newInspector(t, asUser(t, server, string(role), append(scripts, words...)...)).Permissions(t.Context(), "orders", "g", role)
		require.NoError(t, err)
		require.Equal(t, inspect.Permissions{Role: role, Rule: strings.Join(words, " "), Known: true, Missing: []string{}}, p)
		for n, word := range words {
			if word == scripts[0] || word == scripts[1] {
				continue
			}
			user := asUser(t, server, fmt.Sprint(role, n), append(scripts, append(append([]string{}, words[:n]...), words[n+1:]...)...)...)
			p, err := newInspector(t, user).Permissions(t.Context(), "orders", "g", role)
			require.NoError(t, err)
			switch {
			case word == "~{orders}:*":
				require.Contains(t, p.Missing, "~{orders}:dead")
				require.NotContains(t, p.Missing, "~orders")
			case word == "~orders" && strings.Count(p.Rule, "~") == 1:
				require.NotEmpty(t, p.Missing) // no command may be run
			default:
				require.Equal(t, []string{word}, p.Missing, role)
			}
		}
	}
	i := newInspector(t, server.Admin(t))
	p, err := i.Permissions(t.Context(), "a*{b}", "g", inspect.RolePublisher)
	require.NoError(t, err)
	require.Equal(t, `~a\*{b} +xadd +multi +exec`, p.Rule)
	_, err = i.Permissions(t.Context(), "orders", "g", "king")
	require.ErrorIs(t, err, redischannels.ErrInvalidArgument)
	require.ErrorContains(t, err, `got "king"`)
	_, err = i.Permissions(t.Context(), "orders", "", inspect.RoleConsumer)
	require.ErrorIs(t, err, redischannels.ErrInvalidArgument)
	_, err = newInspector(t, asUser(t, server, "mute", "~*", "+xadd")).Permissions(t.Context(), "orders", "g", inspect.RolePublisher)
	require.ErrorIs(t, err, redischannels.ErrPermission)
}
