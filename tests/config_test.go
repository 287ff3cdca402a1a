package tests

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// requireFields checks that the error is a joined one that names each field exactly once.
func requireFields(t *testing.T, err error, prefix string, fields ...string) {
	t.Helper()
	require.ErrorIs(t, err, redischannels.ErrInvalidConfig)
	var joined interface{ Unwrap() []error }
	require.ErrorAs(t, err, &joined)
	var found []string
	for _, problem := range joined.Unwrap() {
		require.ErrorIs(t, problem, redischannels.ErrInvalidConfig)
		rest, ok := strings.CutPrefix(problem.Error(), "redischannels: "+prefix+".")
		require.True(t, ok, "%v", problem)
		field, _, _ := strings.Cut(rest, ": ")
		found = append(found, field)
	}
	require.ElementsMatch(t, fields, found)
}

// One wrong field hides the others, so that a configuration is mended in as many steps as it
// has problems.
func TestConfig_EveryInvalidFieldIsNamed(t *testing.T) {
	t.Parallel()
	client := redis.NewClient(&redis.Options{}) // is not dialed
	defer client.Close()

	_, err := redischannels.NewSubscriber(redischannels.SubscriberConfig{
		StartFrom:           redischannels.AfterID("yesterday"),
		MaxInFlight:         -1,
		MaxDeliveries:       -2,
		MaxPayload:          -2,
		NackBackoff:         redischannels.Backoff{Min: -1},
		DeadLetterRetention: redischannels.Retention{MaxLen: -1},
		HandlerTimeout:      -1,
		Tuning: redischannels.Tuning{
			MinIdle: -1, ClaimInterval: -1, BlockTime: time.Microsecond, DrainTimeout: -1,
			ConsumerTimeout: -1, Prefetch: -2, PrefetchBytes: -1,
		},
	}, nil)
	requireFields(t, err, "SubscriberConfig", "Client", "StartFrom", "MaxInFlight", "MaxDeliveries", "MaxPayload",
		"NackBackoff", "DeadLetterRetention", "HandlerTimeout", "Tuning.MinIdle", "Tuning.ClaimInterval",
		"Tuning.BlockTime", "Tuning.DrainTimeout", "Tuning.ConsumerTimeout", "Tuning.Prefetch", "Tuning.PrefetchBytes")

	_, err = redischannels.NewPublisher(redischannels.PublisherConfig{
		Retention:      redischannels.Retention{MaxLen: 1, MaxAge: time.Hour},
		TopicRetention: map[string]redischannels.Retention{"t": {MaxAge: time.Microsecond}},
		Durability:     redischannels.Durability{Replicas: -1, Timeout: -1},
		MaxPayload:     -2,
		Timeout:        -2,
	}, nil)
	requireFields(t, err, "PublisherConfig", "Client", "Retention", `TopicRetention["t"]`,
		"Durability.Replicas", "Durability.Timeout", "MaxPayload", "Timeout")
	require.ErrorContains(t, err, "PublisherConfig.Timeout: invalid configuration: must be 1ms to 8760h0m0s, 0 for the default, or NoPublishTimeout, got -2ns")

	for name, change := range map[string]func(*redischannels.SubscriberConfig){
		"MaxInFlight":          func(c *redischannels.SubscriberConfig) { c.MaxInFlight = 1_000_000 },
		"Tuning.MinIdle":       func(c *redischannels.SubscriberConfig) { c.Tuning.MinIdle = time.Millisecond },
		"Tuning.Prefetch":      func(c *redischannels.SubscriberConfig) { c.Tuning.Prefetch = 1_000_000 },
		"Tuning.ClaimInterval": func(c *redischannels.SubscriberConfig) { c.Tuning.ClaimInterval = 1 },
		"HandlerTimeout":       func(c *redischannels.SubscriberConfig) { c.HandlerTimeout = 30 }, // 30 nanoseconds
		"NackBackoff":          func(c *redischannels.SubscriberConfig) { c.NackBackoff.Factor = 0.5 },
		"DeadLetterRetention":  func(c *redischannels.SubscriberConfig) { c.DeadLetterRetention.Exact = true },
	} {
		config := redischannels.SubscriberConfig{Client: client}
		change(&config)
		_, err := redischannels.NewSubscriber(config, nil)
		requireFields(t, err, "SubscriberConfig", name)
	}

	_, err = redischannels.NewSubscriber(redischannels.SubscriberConfig{
		Client: client, DeadLetterRetention: redischannels.Retention{MaxAge: time.Hour, Exact: true},
	}, nil)
	requireFields(t, err, "SubscriberConfig", "DeadLetterRetention")

	trim := func(c redischannels.TrimConsumed) redischannels.Retention {
		return redischannels.Retention{TrimConsumed: &c}
	}
	_, err = redischannels.NewSubscriber(redischannels.SubscriberConfig{
		Client: client, DeadLetterRetention: trim(redischannels.TrimConsumed{}),
	}, nil)
	requireFields(t, err, "SubscriberConfig", "DeadLetterRetention")
	require.ErrorContains(t, err, "TrimConsumed must be nil")
	for name, c := range map[string]redischannels.TrimConsumed{
		"Groups[1] must not be empty":               {Groups: []string{"a", ""}},
		`Groups must name each group once, got "a"`: {Groups: []string{"a", "a"}},
		"Keep must be 1ms to ":                      {Keep: -time.Second},
		"StaleAfter must be 1ms to ":                {StaleAfter: time.Microsecond},
	} {
		_, err = redischannels.NewPublisher(redischannels.PublisherConfig{
			Client: client, Retention: trim(c), TopicRetention: map[string]redischannels.Retention{"t": trim(c)},
		}, nil)
		requireFields(t, err, "PublisherConfig", "Retention", `TopicRetention["t"]`)
		require.ErrorContains(t, err, "TrimConsumed."+name)
		_, err = redischannels.NewHousekeeper(redischannels.HousekeeperConfig{Client: client, Topics: []string{"t"}, TrimConsumed: &c}, nil)
		requireFields(t, err, "HousekeeperConfig", "TrimConsumed")
	}

	_, err = redischannels.NewSubscriber(redischannels.SubscriberConfig{Client: client}, nil)
	require.NoError(t, err, "zero values are defaults")
	_, err = redischannels.NewSubscriber(redischannels.SubscriberConfig{
		Client: client, MaxDeliveries: redischannels.UnlimitedDeliveries, MaxPayload: redischannels.UnlimitedPayload,
		NackBackoff: redischannels.Backoff{Jitter: redischannels.NoJitter},
		Tuning:      redischannels.Tuning{Prefetch: redischannels.NoPrefetch},
	}, nil)
	require.NoError(t, err)
}

// otherClient is a client of a type that the library does not know.
type otherClient struct{ redis.UniversalClient }

// Clients that cannot be used are refused by the constructor, not by a panic later.
func TestConfig_UnusableClients(t *testing.T) {
	t.Parallel()
	ring := redis.NewRing(&redis.RingOptions{Addrs: map[string]string{"a": "127.0.0.1:1"}})
	defer ring.Close()
	plain := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"})
	defer plain.Close()
	for name, test := range map[string]struct {
		client redis.UniversalClient
		is     error
	}{
		"nil":               {nil, redischannels.ErrInvalidConfig},
		"nil client":        {(*redis.Client)(nil), redischannels.ErrInvalidConfig},
		"nil cluster":       {(*redis.ClusterClient)(nil), redischannels.ErrInvalidConfig},
		"ring":              {ring, redischannels.ErrUnsupportedClient},
		"wrapper of a type": {otherClient{plain}, redischannels.ErrUnsupportedClient},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := redischannels.NewSubscriber(redischannels.SubscriberConfig{Client: test.client}, nil)
			requireFields(t, err, "SubscriberConfig", "Client")
			require.ErrorIs(t, err, test.is)
			_, err = redischannels.NewPublisher(redischannels.PublisherConfig{Client: test.client}, nil)
			requireFields(t, err, "PublisherConfig", "Client")
			require.ErrorIs(t, err, test.is)
		})
	}
}

// calls are the ways to use a topic, each with a subscriber of a group or without.
func calls(t *testing.T, client redis.UniversalClient) map[string]func(topic string) error {
	t.Helper()
	group, all := newSub(t, client), newSub(t, client, fanOut)
	pub, err := redischannels.NewPublisher(redischannels.PublisherConfig{Client: client, Timeout: 5 * time.Second}, nil)
	require.NoError(t, err)
	t.Cleanup(func() { _ = pub.Close() })
	msg := func() *message.Message { return message.NewMessage("u", nil) }
	return map[string]func(string) error{
		"Subscribe":           func(topic string) error { _, err := group.Subscribe(t.Context(), topic); return err },
		"Subscribe, fan-out":  func(topic string) error { _, err := all.Subscribe(t.Context(), topic); return err },
		"SubscribeInitialize": group.SubscribeInitialize,
		"History": func(topic string) error {
			for _, err := range group.History(t.Context(), topic, redischannels.Oldest, redischannels.Latest) {
				return err
			}
			return errors.New("the iteration yields nothing")
		},
		"Publish":      func(topic string) error { return pub.Publish(topic, msg()) },
		"Publish many": func(topic string) error { return pub.Publish(topic, msg(), msg()) },
		"Append":       func(topic string) error { _, err := pub.Append(t.Context(), topic, msg()); return err },
	}
}

// within fails the test when a call takes longer than it should: an error is no hang.
func within(t *testing.T, call func() error) error {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- call() }()
	select {
	case err := <-done:
		return err
	case <-time.After(soon):
		require.FailNow(t, "the call hangs")
		return nil
	}
}

// A topic without a name, and a key that belongs to another program.
func TestConfig_UnusableTopics(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	for name, call := range calls(t, client) {
		t.Run(name, func(t *testing.T) {
			require.ErrorIs(t, within(t, func() error { return call("") }), redischannels.ErrInvalidArgument)
			topic := redistest.Key(t)
			require.NoError(t, client.Set(t.Context(), topic, "mine", 0).Err())
			err := within(t, func() error { return call(topic) })
			require.ErrorIs(t, err, redischannels.ErrWrongType)
			require.ErrorContains(t, err, topic)
			require.Equal(t, "mine", client.Get(t.Context(), topic).Val(), "the key is left as it is")
		})
	}

	_, err := newSub(t, client).SubscribeFrom(t.Context(), redistest.Key(t), redischannels.AfterID("yesterday"))
	require.ErrorIs(t, err, redischannels.ErrInvalidArgument)
	require.ErrorContains(t, err, `from: invalid argument: must be an entry ID such as 1700000000000-0, got "yesterday"`)
}

// A server that is not there is an error of Subscribe and Publish, after the client's retries.
func TestConfig_UnreachableServer(t *testing.T) {
	t.Parallel()
	client := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", MaxRetries: -1, DialerRetries: 1})
	t.Cleanup(func() { _ = client.Close() })
	for name, call := range calls(t, client) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.ErrorContains(t, within(t, func() error { return call("t") }), "connection refused")
		})
	}
}

// A context that has ended is an answer of its own.
func TestConfig_EndedContexts(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	topic := redistest.Key(t)
	for _, sub := range []*testSub{newSub(t, client), newSub(t, client, fanOut)} {
		_, err := sub.Subscribe(ctx, topic)
		require.ErrorIs(t, err, context.Canceled)
	}
	require.Zero(t, client.Exists(t.Context(), topic).Val())
}
