package tests

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// journalChild consumes CHILD_TOPIC in the group "g". Before it does anything with a message it
// appends "ID COUNT PAYLOAD" to the list CHILD_JOURNAL in Redis, so that what was delivered is
// known however the process ends. Payloads are those of keyedPayload. The messages whose numbers
// CHILD_HOLD lists are never acknowledged; the words "nackN" and "kill" in a payload nack the first N
// deliveries and hold the next one, and end the process by SIGKILL. Everything else is
// acknowledged at once.
var journalChild = redistest.ChildMain("journal", func() {
	fail := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	number := func(name string) int {
		n, _ := strconv.Atoi(os.Getenv(name))
		return n
	}
	options, err := redis.ParseURL(os.Getenv("CHILD_URL"))
	fail(err)
	client := redis.NewClient(options)
	tuning := quickTuning()
	if ms := number("CHILD_MIN_IDLE"); ms > 0 {
		tuning.MinIdle = time.Duration(ms) * time.Millisecond
	}
	config := redischannels.SubscriberConfig{
		Client:        client,
		ConsumerGroup: "g",
		Consumer:      "child",
		MaxInFlight:   number("CHILD_IN_FLIGHT"),
		MaxDeliveries: number("CHILD_MAX_DELIVERIES"),
		NackBackoff:   quickBackoff(),
		Tuning:        tuning,
	}
	if os.Getenv("CHILD_KEYED") == "1" {
		config.OrderingKey = orderingKey
	}
	sub, err := redischannels.NewSubscriber(config, nil)
	fail(err)
	messages, err := sub.Subscribe(context.Background(), os.Getenv("CHILD_TOPIC"))
	fail(err)
	hold := strings.Split(os.Getenv("CHILD_HOLD"), ",")
	for msg := range messages {
		id, _ := redischannels.EntryIDFromContext(msg.Context())
		count, _ := redischannels.DeliveryCountFromContext(msg.Context())
		line := fmt.Sprintf("%s %d %s", id, count, msg.Payload)
		fail(client.RPush(context.Background(), os.Getenv("CHILD_JOURNAL"), line).Err())
		words := strings.Fields(string(msg.Payload))
		order := strings.Join(words[2:], "")
		nacks, _ := strconv.Atoi(strings.TrimPrefix(order, "nack"))
		switch {
		case order == "kill":
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		case slices.Contains(hold, words[1]) || nacks > 0 && count > nacks:
		case nacks > 0:
			msg.Nack()
		default:
			msg.Ack()
		}
	}
})

// keyedPayload is "KEY NUMBER" or "KEY NUMBER ORDER", where the order is for a journalChild.
func keyedPayload(key, number int, order ...string) string {
	return strings.Join(append([]string{fmt.Sprintf("k%d", key), strconv.Itoa(number)}, order...), " ")
}

// keyOf and numberOf take a keyedPayload apart.
func keyOf(payload string) string { return strings.Fields(payload)[0] }

func numberOf(payload string) int {
	n, _ := strconv.Atoi(strings.Fields(payload)[1])
	return n
}

// orderingKey is the OrderingKey of messages with a keyedPayload.
func orderingKey(msg *message.Message) string { return keyOf(string(msg.Payload)) }

// keyedBatch returns the payloads of the numbers first to last, which take turns among so many keys.
func keyedBatch(keys, first, last int) []string {
	var payloads []string
	for n := first; n <= last; n++ {
		payloads = append(payloads, keyedPayload(n%keys, n))
	}
	return payloads
}

// journal is the list in which the journalChilds of one topic write.
type journal struct {
	client redis.UniversalClient
	key    string
}

// startJournal starts a journalChild on the topic; settings are "NAME=value" without CHILD_.
func startJournal(t *testing.T, server *redistest.Server, topic string, settings ...string) (*redistest.Child, *journal) {
	t.Helper()
	options := server.Options()
	address := url.URL{Scheme: "redis", Host: options.Addr, Path: "/" + strconv.Itoa(options.DB)}
	if options.Password != "" {
		address.User = url.UserPassword(options.Username, options.Password)
	}
	j := &journal{client: server.Client(t), key: topic + ":journal"}
	env := []string{"CHILD_URL=" + address.String(), "CHILD_TOPIC=" + topic, "CHILD_JOURNAL=" + j.key}
	for _, s := range settings {
		env = append(env, "CHILD_"+s)
	}
	return redistest.StartChild(t, journalChild, env...), j
}

// all returns the deliveries so far, in their order.
func (j *journal) all(t *testing.T) []delivered {
	t.Helper()
	lines, err := j.client.LRange(t.Context(), j.key, 0, -1).Result()
	require.NoError(t, err)
	got := make([]delivered, len(lines))
	for i, line := range lines {
		got[i] = parseDelivered(line)
	}
	return got
}

// waitFor waits until the message of a number was delivered that often.
func (j *journal) waitFor(t *testing.T, number, times int) {
	t.Helper()
	redistest.Eventually(t, 2*soon, func() bool {
		n := 0
		for _, m := range j.all(t) {
			if numberOf(m.payload) == number {
				n++
			}
		}
		return n >= times
	}, "delivery %d of message %d", times, number)
}

// waitIdle waits until all that is pending was left alone for that long.
func waitIdle(t *testing.T, client redis.UniversalClient, topic string, d time.Duration) {
	t.Helper()
	redistest.Eventually(t, soon, func() bool {
		return !slices.ContainsFunc(pendingOf(t, client, topic), func(p redis.XPendingExt) bool { return p.Idle < d })
	}, "entries that no consumer has touched for %s", d)
}
