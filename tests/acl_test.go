package tests

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	wmtests "github.com/ThreeDotsLabs/watermill/pubsub/tests"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/inspect"
	"github.com/flaminco/redischannels/internal/bridge"
	"github.com/flaminco/redischannels/internal/housekeeper"
	"github.com/flaminco/redischannels/internal/keys"
	"github.com/flaminco/redischannels/internal/redistest"
)

// documentedRules returns the rules of docs/acl.md by the name of their user, as words.
func documentedRules(t *testing.T) map[string][]string {
	t.Helper()
	page, err := os.ReadFile("../docs/acl.md")
	require.NoError(t, err)
	rules := map[string][]string{}
	for _, block := range strings.Split(string(page), "```acl\n")[1:] {
		block, _, _ = strings.Cut(block, "```")
		for line := range strings.Lines(block) {
			words := strings.Fields(line)
			require.Equal(t, "user", words[0])
			require.NotContains(t, rules, words[1])
			rules[words[1]] = words[2:]
		}
	}
	return rules
}

// features are the features of the users of docs/acl.md: each uses everything that its
// permissions allow, and returns the first error. admin has all permissions.
var features = map[string]func(t *testing.T, admin, client *redis.Client, topic string) error{
	"publisher": func(t *testing.T, _, client *redis.Client, topic string) error {
		return aclPublish(t, redischannels.PublisherConfig{Client: client}, topic)
	},
	"durable-publisher": func(t *testing.T, _, client *redis.Client, topic string) error {
		durability := redischannels.Durability{Replicas: 1, Timeout: 50 * time.Millisecond}
		return aclPublish(t, redischannels.PublisherConfig{Client: client, Durability: durability}, topic)
	},
	"ageing-publisher": func(t *testing.T, _, client *redis.Client, topic string) error {
		retention := redischannels.Retention{MaxAge: time.Hour}
		return aclPublish(t, redischannels.PublisherConfig{Client: client, Retention: retention}, topic)
	},
	"consumer": func(t *testing.T, admin, client *redis.Client, topic string) error {
		return aclConsume(t, admin, client, topic, redischannels.Retention{MaxAge: time.Hour})
	},
	"doctor": func(t *testing.T, admin, client *redis.Client, topic string) error {
		require.NoError(t, newSub(t, admin).SubscribeInitialize(topic))
		ids := publish(t, admin, topic, make([]string, 300)...)
		deliverTo(t, admin, topic, "c", 10, 0)
		require.NoError(t, admin.XDel(t.Context(), topic, ids[20]).Err())
		aclTrimmable(t, admin, topic)
		findings, err := newInspector(t, client).Doctor(t.Context(), inspect.DoctorQuery{Match: topic})
		for _, f := range findings {
			if f.Check == "permission" || f.Check == "scripting" {
				err = errors.Join(err, fmt.Errorf("%w: %s", redischannels.ErrPermission, f.Problem))
			}
		}
		return err
	},
	"initializer": func(t *testing.T, _, client *redis.Client, topic string) error {
		return newSub(t, client).SubscribeInitialize(topic)
	},
	"monitor": func(t *testing.T, admin, client *redis.Client, topic string) error {
		require.NoError(t, newSub(t, admin).SubscribeInitialize(topic))
		ids := publish(t, admin, topic, make([]string, 300)...)
		deliverTo(t, admin, topic, "c", 10, 0)
		require.NoError(t, admin.XDel(t.Context(), topic, ids[20]).Err())
		require.NoError(t, newInspector(t, admin).Pause(t.Context(), topic, "g", inspect.PauseOptions{Until: serverTime(t, admin).Add(time.Hour)}))
		stats, err := newSub(t, client).GroupStats(t.Context(), topic)
		if err == nil {
			require.EqualValues(t, 289, stats.Lag)
			require.True(t, stats.Paused)
		}
		return err
	},
	"reader": func(t *testing.T, admin, client *redis.Client, topic string) error {
		sub := newSub(t, client, fanOut)
		messages, err := sub.Subscribe(t.Context(), topic)
		if err != nil {
			return err
		}
		publish(t, admin, topic, "m")
		require.Equal(t, []string{"m"}, receiveAcked(t, messages, 1))
		sub.closeSoon(t)
		return firstError(sub.events)
	},
	"historian": func(t *testing.T, admin, client *redis.Client, topic string) error {
		publish(t, admin, topic, "a", "b")
		n := 0
		for _, err := range newSub(t, client).History(t.Context(), topic, redischannels.Oldest, redischannels.Latest) {
			if err != nil {
				return err
			}
			n++
		}
		require.Equal(t, 2, n)
		return nil
	},
	"auditor": func(t *testing.T, admin, client *redis.Client, topic string) error {
		_, id := aclDeadLetter(t, admin, topic)
		for letter, err := range newDeadLetters(t, client).List(t.Context(), topic, redischannels.DeadLetterQuery{}) {
			if err != nil {
				return err
			}
			require.Equal(t, id, letter.ID)
			return nil
		}
		return errors.New("the list is empty")
	},
	"purger": func(t *testing.T, admin, client *redis.Client, topic string) error {
		_, id := aclDeadLetter(t, admin, topic)
		n, err := newDeadLetters(t, client).Purge(t.Context(), topic, id)
		require.True(t, n == 1 || err != nil)
		return err
	},
	"delaying-publisher": aclDelay,
	"housekeeper":        aclKeep,
	"trimmer": func(t *testing.T, admin, client *redis.Client, topic string) error {
		publish(t, admin, topic, "a", "b")
		require.NoError(t, admin.XGroupCreate(t.Context(), topic, "behind", "0").Err())
		deliverTo(t, admin, topic, "c", 1, 0)
		handle := housekeeper.Open(client, eventObserver{&events{}})
		defer func() { require.NoError(t, handle.Close()) }()
		return bridge.RedisError(handle.TrimNow(t.Context(), keys.Topic{Name: topic, Base: "{" + topic + "}"}, keepNothing.String()))
	},
	"group-remover": aclRemoveGroup,
	"seeker":        aclSeek,
	"trim-operator": func(t *testing.T, admin, client *redis.Client, topic string) error {
		aclTrimmable(t, admin, topic)
		got, err := newInspector(t, client).Trim(t.Context(), topic)
		require.True(t, err != nil || got.Removed > 0)
		return err
	},
	"retention-monitor": func(t *testing.T, admin, client *redis.Client, topic string) error {
		aclTrimmable(t, admin, topic)
		_, err := newInspector(t, client).Retained(t.Context(), topic)
		return err
	},
	"delay-operator": aclCancel,
	"scheduler":      aclSchedule,
	"operator":       aclOperate,
	"controller":     aclControl,
	"viewer":         aclInspect,
	"waiting-writer": aclWaitToWrite,
	"follower":       aclFollow,
	"repairer":       aclRepair,
	"channel-publisher": func(t *testing.T, _, client *redis.Client, topic string) error {
		return aclPubSubPublish(t, client, topic)
	},
	"shard-publisher": func(t *testing.T, _, client *redis.Client, topic string) error {
		return aclPubSubPublish(t, client, topic, shardedPub)
	},
	"channel-subscriber": func(t *testing.T, admin, client *redis.Client, topic string) error {
		return aclPubSubSubscribe(t, admin, client, [2]string{topic + ":a", topic + ":b"}, "numsub", func(*redischannels.PubSubSubscriberConfig) {})
	},
	"pattern-subscriber": func(t *testing.T, admin, client *redis.Client, topic string) error {
		return aclPubSubSubscribe(t, admin, client, [2]string{topic + ":*", topic + ":eu:*"}, "numpat", patterns)
	},
	"shard-subscriber": func(t *testing.T, admin, client *redis.Client, topic string) error {
		return aclPubSubSubscribe(t, admin, client, [2]string{topic + ":a", topic + ":b"}, "shardnumsub", shardedSub)
	},
}

func aclPublish(t *testing.T, config redischannels.PublisherConfig, topic string) error {
	t.Helper()
	config.Timeout = 5 * time.Second
	pub, err := redischannels.NewPublisher(config, nil)
	require.NoError(t, err)
	defer pub.Close()
	for _, n := range []int{1, 3} {
		_, err := pub.Append(context.Background(), topic, pubMessages("m", n)...)
		if under := new(redischannels.PublishError); errors.As(err, &under) && under.Count(redischannels.OutcomeUnderReplicated) == n {
			if errors.Is(err, redischannels.ErrPermission) {
				return err
			}
			continue // WAIT was heard, and there is no replica
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func aclDeadLetter(t *testing.T, admin *redis.Client, topic string) (entry, dead string) {
	t.Helper()
	for _, key := range []string{topic, returnStream(topic, "g")} {
		require.NoError(t, admin.XGroupCreateMkStream(t.Context(), key, "g", "0").Err())
	}
	d := &deadTopic{name: topic, dead: deadStream(topic), client: admin}
	return d.die(t, "g", "", "a", "1")
}

func aclOperate(t *testing.T, admin, client *redis.Client, topic string) error {
	_, id := aclDeadLetter(t, admin, topic)
	letters := newDeadLetters(t, client)
	results, err := letters.Requeue(t.Context(), topic, id)
	if err != nil {
		return err
	}
	require.Len(t, results, 1)
	d := &deadTopic{name: topic, dead: deadStream(topic), client: admin}
	_, id = d.die(t, "g", "", "a", "2")
	results, err = letters.Reappend(t.Context(), topic, id)
	require.True(t, len(results) == 1 || err != nil)
	return err
}

// aclConsume has a subscription live through everything: a claim, a nack, dead letters of both
// sizes, a cold script cache, the loss of its group and a delayed message of another process.
func aclConsume(t *testing.T, admin, client *redis.Client, topic string, deadLetters redischannels.Retention) error {
	ctx := t.Context()
	publish(t, admin, topic, "claimed")
	deliverTo(t, admin, topic, "dead", 1, time.Hour)
	sub := newSub(t, client, func(c *redischannels.SubscriberConfig) {
		c.Tuning.DrainTimeout = time.Millisecond
		c.DeadLetterRetention = deadLetters
	})
	messages, err := sub.Subscribe(ctx, topic)
	if err != nil {
		return err
	}
	defer sub.closeSoon(t)
	// next acknowledges, or rejects, the next message, unless something was refused before.
	next := func(outcome func(*message.Message)) error {
		for deadline := time.After(soon); ; {
			select {
			case msg := <-messages:
				outcome(msg)
				return nil
			case <-time.After(10 * time.Millisecond):
				if err := firstError(sub.events); err != nil {
					return err
				}
			case <-deadline:
				return errors.New("no message")
			}
		}
	}
	ack := func(m *message.Message) { m.Ack() }
	reject := func(m *message.Message) { redischannels.Reject(m, "no"); m.Nack() }
	dead := func(n int64) func() bool {
		return func() bool { return admin.XLen(ctx, deadStream(topic)).Val() == n }
	}
	if err := next(ack); err != nil {
		return err
	}
	require.NoError(t, admin.ScriptFlush(ctx).Err())
	publish(t, admin, topic, "nacked", "rejected")
	for _, outcome := range []func(*message.Message){func(m *message.Message) { m.Nack() }, ack, reject} {
		if err := next(outcome); err != nil {
			return err
		}
	}
	if err := aclEvent(sub.events, dead(1)); err != nil {
		return err
	}
	addRaw(t, admin, topic, manyFields(4000)...)
	if err := aclEvent(sub.events, dead(2)); err != nil {
		return err
	}
	eventuallyPending(t, admin, topic, 0)
	require.NoError(t, admin.XGroupDestroy(ctx, topic, "g").Err())
	if err := aclEvent(sub.events, func() bool { return len(sub.events.of(redischannels.EventGroupLost)) == 1 }); err != nil {
		return err
	}
	aclStore(t, admin, topic)
	for range 3 {
		if err := next(ack); err != nil {
			return err
		}
	}
	if err := aclEvent(sub.events, func() bool { return dead(3)() && aclRecorded(t, admin, topic) }); err != nil {
		return err
	}
	eventuallyPending(t, admin, topic, 0)
	sub.closeSoon(t)
	require.Empty(t, consumersOf(t, admin, topic))
	return firstError(sub.events)
}

// aclEvent waits for a condition, or for the first error that is reported.
func aclEvent(seen *events, done func() bool) error {
	for deadline := time.Now().Add(soon); time.Now().Before(deadline); <-time.After(5 * time.Millisecond) {
		if err := firstError(seen); err != nil {
			return err
		}
		if done() {
			return nil
		}
	}
	return errors.New("it does not happen")
}

// firstError is that of the first event that reports a failure.
func firstError(e *events) error {
	for _, kind := range []redischannels.EventKind{redischannels.EventDisconnected, redischannels.EventError,
		redischannels.EventAckFailed, redischannels.EventDeadLetterFailed} {
		if found := e.of(kind); len(found) > 0 {
			return found[0].Err
		}
	}
	return nil
}

// Rules that are too narrow break a feature long after its deployment, and rules that are
// too wide are not least privilege. Each feature works under exactly the rules of
// docs/acl.md, and with each of the permissions removed the error says what it is. The scripts
// are not in the server's cache when a feature begins, so that eval is needed.
func TestACL_DocumentedRulesSuffice(t *testing.T) {
	t.Parallel()
	rules := documentedRules(t)
	for user := range features {
		require.Contains(t, rules, user)
	}
	for user, words := range rules {
		require.Contains(t, features, user)
		// A server for each user: the cache of scripts is one.
		t.Run(user, func(t *testing.T) {
			t.Parallel()
			server := redistest.Start(t)
			admin := server.Admin(t)
			if strings.HasPrefix(user, "shard-") {
				redistest.NeedsRedis7(t, admin, "shard channels")
			}
			run := func(t *testing.T, without string) error {
				topic := redistest.Key(t)
				args := []any{"acl", "setuser", topic}
				for _, word := range words {
					if word != without {
						args = append(args, strings.ReplaceAll(word, "orders", topic))
					}
				}
				require.NoError(t, admin.Do(t.Context(), args...).Err())
				require.NoError(t, admin.ScriptFlush(t.Context()).Err())
				client := server.Client(t, redistest.As(topic, "change-me"))
				return within(t, func() error { return features[user](t, admin, client, topic) })
			}
			require.NoError(t, run(t, ""))
			for _, right := range words {
				if !strings.ContainsAny(right[:1], "+~&") {
					continue
				}
				t.Run("without "+right, func(t *testing.T) {
					err := run(t, right)
					require.Error(t, err, "the permission is not needed")
					require.ErrorIs(t, err, redischannels.ErrPermission)
				})
			}
		})
	}
}

// Watermill's suite under exactly the rules of the documentation.
func TestACL_ConformanceUnderDocumentedRules(t *testing.T) {
	rules := documentedRules(t)
	words := slices.Concat(rules["publisher"], rules["consumer"])
	for i, word := range words {
		if strings.HasPrefix(word, "~") {
			words[i] = "~*" // the suite makes its own topics
		}
	}
	server := redistest.Start(t, redistest.WithACL("suite "+strings.Join(words, " ")))
	s := newSuite(t, server, 32, redistest.As("suite", "change-me"))
	features := s.features()
	features.ForceShort = true
	wmtests.TestPubSub(t, features, s.constructor, s.groupConstructor)
}

// The section on every connection: another database, a cluster, and separate permissions for
// reading and writing.
func TestACL_RulesOfEveryConnection(t *testing.T) {
	t.Parallel()
	rules := documentedRules(t)
	user := func(topic string, more string, names ...string) string {
		words := []string{"app"}
		for _, name := range names {
			for _, word := range rules[name] {
				words = append(words, strings.ReplaceAll(word, "orders", topic))
			}
		}
		return strings.Join(append(words, more), " ")
	}
	use := func(t *testing.T, client redis.UniversalClient, topic string) {
		t.Helper()
		sub := newSub(t, client)
		messages := sub.subscribe(t, topic)
		publish(t, client, topic, "a", "b")
		require.Equal(t, []string{"a"}, receiveAcked(t, messages, 1))
		msg := receive(t, messages)
		redischannels.Reject(msg, "no")
		msg.Nack()
		sub.events.wait(t, redischannels.EventDeadLettered)
		sub.closeSoon(t)
		require.NoError(t, firstError(sub.events))
	}

	t.Run("another database", func(t *testing.T) {
		t.Parallel()
		topic := redistest.Key(t)
		server := redistest.Start(t, redistest.WithACL(user(topic, "+select", "publisher", "consumer")))
		client := server.Client(t, redistest.As("app", "change-me"), redistest.DB(5))
		use(t, client, topic)
		require.NoError(t, server.Admin(t).Do(t.Context(), "acl", "setuser", "app", "-select").Err())
		_, err := newSub(t, server.Client(t, redistest.As("app", "change-me"), redistest.DB(5))).Subscribe(t.Context(), topic)
		require.ErrorIs(t, err, redischannels.ErrPermission)
	})
	t.Run("cluster", func(t *testing.T) {
		t.Parallel()
		topic := redistest.Key(t)
		cluster := redistest.StartCluster(t, 3, redistest.WithACL(user(topic, "+cluster|slots +cluster|shards +command", "publisher", "consumer")))
		use(t, cluster.Client(t, func(o *redis.ClusterOptions) { o.Username, o.Password = "app", "change-me" }), topic)
	})
	t.Run("reading only", func(t *testing.T) {
		t.Parallel()
		server := redistest.Start(t)
		admin := server.Admin(t)
		redistest.NeedsRedis7(t, admin, "permission to read a key and not to write it (docs/acl.md)")
		for _, name := range []string{"reader", "historian", "monitor", "auditor"} {
			topic := redistest.Key(t, name)
			args := []any{"acl", "setuser", topic}
			for _, word := range rules[name] {
				args = append(args, strings.ReplaceAll(strings.Replace(word, "~", "%R~", 1), "orders", topic))
			}
			require.NoError(t, admin.Do(t.Context(), args...).Err())
			client := server.Client(t, redistest.As(topic, "change-me"))
			err := within(t, func() error { return features[name](t, admin, client, topic) })
			if name == "auditor" {
				require.NoError(t, err)
			} else {
				require.ErrorIs(t, err, redischannels.ErrPermission, name)
			}
		}
	})
}
