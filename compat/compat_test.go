package compat_test

import (
	"errors"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill-redisstream/pkg/redisstream"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/compat"
)

// unused is a client that no test of a configuration calls.
var unused = new(redis.Client)

func constant(d time.Duration) redischannels.Backoff {
	return redischannels.Backoff{Min: d, Max: d, Factor: 1, Jitter: redischannels.NoJitter}
}

// A configuration with only a client becomes the defaults of watermill-redisstream.
var (
	emptyPublisher  = redischannels.PublisherConfig{Client: unused}
	emptySubscriber = redischannels.SubscriberConfig{
		Client:        unused,
		StartFrom:     redischannels.Latest,
		MaxDeliveries: redischannels.UnlimitedDeliveries,
		DeferAfter:    redischannels.NeverDefer,
		NackBackoff:   constant(time.Millisecond),
		Tuning:        redischannels.Tuning{MinIdle: time.Minute, ClaimInterval: 5 * time.Second, ConsumerTimeout: 10 * time.Minute},
	}
)

type custom struct{}

func (custom) Marshal(string, *message.Message) (map[string]any, error) { return nil, nil }
func (custom) Unmarshal(map[string]any) (*message.Message, error)       { return nil, nil }

// field is the conversion of one field of a configuration. A field without a case is ignored.
type field[From, To any] struct {
	set  func(*From)
	want func(*To)
	err  error
}

type (
	publisherField  = field[redisstream.PublisherConfig, redischannels.PublisherConfig]
	subscriberField = field[redisstream.SubscriberConfig, redischannels.SubscriberConfig]
)

var publisherFields = map[string][]publisherField{
	"Client": {{
		set: func(c *redisstream.PublisherConfig) { c.Client = nil },
		err: redischannels.ErrInvalidConfig,
	}, {
		set: func(c *redisstream.PublisherConfig) { c.Client = new(redis.Ring) },
		err: redischannels.ErrUnsupportedClient,
	}},
	"Marshaller": {{
		set: func(c *redisstream.PublisherConfig) { c.Marshaller = redisstream.DefaultMarshallerUnmarshaller{} },
	}, {
		set: func(c *redisstream.PublisherConfig) { c.Marshaller = &redisstream.DefaultMarshallerUnmarshaller{} },
	}, {
		set:  func(c *redisstream.PublisherConfig) { c.Marshaller = custom{} },
		want: func(c *redischannels.PublisherConfig) { c.Marshaler = compat.Marshaler(custom{}) },
	}},
	"DefaultMaxlen": {{
		set:  func(c *redisstream.PublisherConfig) { c.DefaultMaxlen = 5 },
		want: func(c *redischannels.PublisherConfig) { c.Retention = redischannels.Retention{MaxLen: 5} },
	}, {
		set: func(c *redisstream.PublisherConfig) { c.DefaultMaxlen = -5 },
	}},
	"Maxlens": {{
		set: func(c *redisstream.PublisherConfig) {
			c.DefaultMaxlen = 5
			c.Maxlens = map[string]int64{"bound": 7, "none": 0, "default": -1}
		},
		want: func(c *redischannels.PublisherConfig) {
			c.Retention = redischannels.Retention{MaxLen: 5}
			c.TopicRetention = map[string]redischannels.Retention{"bound": {MaxLen: 7}, "none": {}}
		},
	}, {
		set: func(c *redisstream.PublisherConfig) { c.Maxlens = map[string]int64{"default": -1} },
	}},
}

var subscriberFields = map[string][]subscriberField{
	"Client": {{
		set: func(c *redisstream.SubscriberConfig) { c.Client = nil },
		err: redischannels.ErrInvalidConfig,
	}},
	"Unmarshaller": {{
		set: func(c *redisstream.SubscriberConfig) { c.Unmarshaller = redisstream.DefaultMarshallerUnmarshaller{} },
	}, {
		set: func(c *redisstream.SubscriberConfig) { c.Unmarshaller = &redisstream.DefaultMarshallerUnmarshaller{} },
	}, {
		set:  func(c *redisstream.SubscriberConfig) { c.Unmarshaller = custom{} },
		want: func(c *redischannels.SubscriberConfig) { c.Unmarshaler = compat.Unmarshaler(custom{}) },
	}},
	"Consumer": {{
		set:  func(c *redisstream.SubscriberConfig) { c.Consumer = "worker" },
		want: func(c *redischannels.SubscriberConfig) { c.Consumer = "worker" },
	}},
	"ConsumerGroup": {{
		set: func(c *redisstream.SubscriberConfig) { c.ConsumerGroup = "g" },
		want: func(c *redischannels.SubscriberConfig) {
			c.ConsumerGroup, c.StartFrom = "g", redischannels.Oldest
		},
	}},
	"NackResendSleep": {{
		set:  func(c *redisstream.SubscriberConfig) { c.NackResendSleep = 3 * time.Second },
		want: func(c *redischannels.SubscriberConfig) { c.NackBackoff = constant(3 * time.Second) },
	}, {
		set:  func(c *redisstream.SubscriberConfig) { c.NackResendSleep = time.Hour },
		want: func(c *redischannels.SubscriberConfig) { c.NackBackoff = constant(time.Hour) },
	}, {
		set: func(c *redisstream.SubscriberConfig) { c.NackResendSleep = redisstream.NoSleep },
	}, {
		set: func(c *redisstream.SubscriberConfig) { c.NackResendSleep = -time.Hour },
	}},
	"BlockTime": {{
		set:  func(c *redisstream.SubscriberConfig) { c.BlockTime = time.Second },
		want: func(c *redischannels.SubscriberConfig) { c.Tuning.BlockTime = time.Second },
	}, {
		set: func(c *redisstream.SubscriberConfig) { c.BlockTime = -1 },
		err: redischannels.ErrInvalidConfig,
	}},
	"ClaimInterval": {{
		set:  func(c *redisstream.SubscriberConfig) { c.ClaimInterval = time.Second },
		want: func(c *redischannels.SubscriberConfig) { c.Tuning.ClaimInterval = time.Second },
	}},
	"ClaimBatchSize": {{
		set: func(c *redisstream.SubscriberConfig) { c.ClaimBatchSize = 7 },
	}},
	"MaxIdleTime": {{
		set:  func(c *redisstream.SubscriberConfig) { c.MaxIdleTime = time.Second },
		want: func(c *redischannels.SubscriberConfig) { c.Tuning.MinIdle = time.Second },
	}, {
		set: func(c *redisstream.SubscriberConfig) { c.MaxIdleTime = time.Millisecond },
		err: redischannels.ErrInvalidConfig,
	}},
	"CheckConsumersInterval": {{
		set: func(c *redisstream.SubscriberConfig) { c.CheckConsumersInterval = time.Second },
	}},
	"ConsumerTimeout": {{
		set:  func(c *redisstream.SubscriberConfig) { c.ConsumerTimeout = time.Second },
		want: func(c *redischannels.SubscriberConfig) { c.Tuning.ConsumerTimeout = time.Second },
	}},
	"OldestId": {{
		set: func(c *redisstream.SubscriberConfig) { c.OldestId = "not for fan-out" },
	}, {
		set: func(c *redisstream.SubscriberConfig) { c.ConsumerGroup, c.OldestId = "g", "0" },
		want: func(c *redischannels.SubscriberConfig) {
			c.ConsumerGroup, c.StartFrom = "g", redischannels.Oldest
		},
	}, {
		set: func(c *redisstream.SubscriberConfig) { c.ConsumerGroup, c.OldestId = "g", "$" },
		want: func(c *redischannels.SubscriberConfig) {
			c.ConsumerGroup, c.StartFrom = "g", redischannels.Latest
		},
	}, {
		set: func(c *redisstream.SubscriberConfig) { c.ConsumerGroup, c.OldestId = "g", "5-6" },
		want: func(c *redischannels.SubscriberConfig) {
			c.ConsumerGroup, c.StartFrom = "g", redischannels.AfterID("5-6")
		},
	}, {
		set: func(c *redisstream.SubscriberConfig) { c.ConsumerGroup, c.OldestId = "g", ">" },
		err: redischannels.ErrInvalidConfig,
	}},
	"FanOutOldestId": {{
		set: func(c *redisstream.SubscriberConfig) { c.FanOutOldestId = "$" },
	}, {
		set:  func(c *redisstream.SubscriberConfig) { c.FanOutOldestId = "0" },
		want: func(c *redischannels.SubscriberConfig) { c.StartFrom = redischannels.Oldest },
	}, {
		set:  func(c *redisstream.SubscriberConfig) { c.FanOutOldestId = "5-6" },
		want: func(c *redischannels.SubscriberConfig) { c.StartFrom = redischannels.AfterID("5-6") },
	}, {
		set: func(c *redisstream.SubscriberConfig) { c.FanOutOldestId = "+" },
		err: redischannels.ErrInvalidConfig,
	}},
	"ShouldClaimPendingMessage": {{
		set: func(c *redisstream.SubscriberConfig) {
			c.ShouldClaimPendingMessage = func(redis.XPendingExt) bool { return true }
		},
		err: compat.ErrShouldClaimPendingMessage,
	}},
	"ShouldStopOnReadErrors": {{
		set: func(c *redisstream.SubscriberConfig) { c.ShouldStopOnReadErrors = func(error) bool { return true } },
		err: compat.ErrShouldStopOnReadErrors,
	}},
	"DisableIndefiniteInitialBlock": {{
		set: func(c *redisstream.SubscriberConfig) { c.DisableIndefiniteInitialBlock = true },
	}},
}

// fieldsOf names the fields of a configuration there. A release that adds one
// must not be taken in without a decision what it becomes here.
func fieldsOf[From any]() []string {
	var names []string
	for f := range reflect.TypeFor[From]().Fields() {
		names = append(names, f.Name)
	}
	slices.Sort(names)
	return names
}

func testFields[From, To any](t *testing.T, convert func(From) (To, error), from From, to To, fields map[string][]field[From, To]) {
	require.Equal(t, fieldsOf[From](), slices.Sorted(maps.Keys(fields)))
	got, err := convert(from)
	require.NoError(t, err)
	require.Equal(t, to, got)
	for name, cases := range fields {
		for i, c := range cases {
			from, to := from, to
			c.set(&from)
			if c.want != nil {
				c.want(&to)
			}
			got, err := convert(from)
			if c.err != nil {
				require.ErrorIs(t, err, c.err, "%s %d", name, i)
				require.Zero(t, got)
				continue
			}
			require.NoError(t, err, "%s %d", name, i)
			require.Equal(t, to, got, "%s %d", name, i)
		}
	}
}

func TestPublisherConfig(t *testing.T) {
	testFields(t, compat.PublisherConfig, redisstream.PublisherConfig{Client: unused}, emptyPublisher, publisherFields)
}

func TestSubscriberConfig(t *testing.T) {
	testFields(t, compat.SubscriberConfig, redisstream.SubscriberConfig{Client: unused}, emptySubscriber, subscriberFields)
}

// The constructor of watermill-redisstream rewrites the caller's map.
func TestPublisherConfigLeavesMap(t *testing.T) {
	maxLens := map[string]int64{"a": 7, "b": -1}
	got, err := compat.PublisherConfig(redisstream.PublisherConfig{Client: unused, DefaultMaxlen: 5, Maxlens: maxLens})
	require.NoError(t, err)
	require.Equal(t, map[string]int64{"a": 7, "b": -1}, maxLens)
	maxLens["c"] = 1
	require.Len(t, got.TopicRetention, 1)
}

func TestSubscriberConfigNamesAllProblems(t *testing.T) {
	_, err := compat.SubscriberConfig(redisstream.SubscriberConfig{
		MaxIdleTime:               -1,
		ShouldClaimPendingMessage: func(redis.XPendingExt) bool { return true },
		ShouldStopOnReadErrors:    func(error) bool { return true },
	})
	for _, want := range []error{compat.ErrShouldClaimPendingMessage, compat.ErrShouldStopOnReadErrors, redischannels.ErrInvalidConfig} {
		require.ErrorIs(t, err, want)
	}
	for _, name := range []string{"Client", "Tuning.MinIdle", "ShouldClaimPendingMessage", "ShouldStopOnReadErrors"} {
		require.ErrorContains(t, err, name)
	}
}

// The guide shows the code that is compiled here.
func TestGuideSnippets(t *testing.T) {
	guide, err := os.ReadFile("../docs/from-redisstream.md")
	require.NoError(t, err)
	source, err := os.ReadFile("example_test.go")
	require.NoError(t, err)

	var bodies []string
	for _, fn := range strings.Split(string(source), "\nfunc Example")[1:] {
		_, body, _ := strings.Cut(fn, "{\n")
		body, _, _ = strings.Cut(body, "\n}\n")
		bodies = append(bodies, strings.ReplaceAll("\n"+body, "\n\t", "\n")[1:])
	}
	var snippets []string
	for _, part := range strings.Split(string(guide), "```go\n")[1:] {
		snippet, _, found := strings.Cut(part, "\n```")
		require.True(t, found)
		snippets = append(snippets, snippet)
	}
	require.Equal(t, bodies, snippets)
}

var errCodec = errors.New("codec")
