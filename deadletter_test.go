package redischannels

import (
	"errors"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/flaminco/redischannels/internal/redisconn"
)

func TestDefaultDeadLetterTopic(t *testing.T) {
	for topic, want := range map[string]string{
		"orders":        "{orders}:dead",
		"a:{b}:c":       "a:{b}:c:dead",
		"{a":            "{{a}:dead",
		"{a}{b}":        "{a}{b}:dead",
		"a{b}c}":        "a{b}c}:dead",
		"topic\r\nDEL ": "{topic\r\nDEL }:dead",
	} {
		got, err := DefaultDeadLetterTopic(topic)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	for _, topic := range []string{"", "a}", "{}", "{}a", "}{", "a{}b{c}"} {
		_, err := DefaultDeadLetterTopic(topic)
		require.ErrorIs(t, err, ErrInvalidArgument, topic)
		if topic != "" {
			require.ErrorContains(t, err, "SideKeys must be set")
		}
	}
}

// A default name in another slot than its topic would fail in a cluster
// with CROSSSLOT, and only when the first message dies.
func TestDefaultDeadLetterTopicKeepsSlot(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		topic := rapid.StringOfN(rapid.RuneFrom([]rune("ab{}:")), 1, 12, -1).Draw(t, "topic")
		dead, err := DefaultDeadLetterTopic(topic)
		if err != nil {
			require.Contains(t, topic, "}")
			return
		}
		require.Equal(t, redisconn.Slot(topic), redisconn.Slot(dead))
		require.NotEqual(t, topic, dead)
	})
}

func TestCheckDeadLetterTopic(t *testing.T) {
	for _, cluster := range []bool{false, true} {
		require.NoError(t, checkDeadLetterTopic("orders", "{orders}.failed", cluster))
		require.NoError(t, checkDeadLetterTopic("a{x}", "b{x}", cluster))
		require.ErrorIs(t, checkDeadLetterTopic("orders", "orders", cluster), ErrInvalidConfig)
		require.ErrorIs(t, checkDeadLetterTopic("orders", "", cluster), ErrInvalidConfig)
	}
	require.NoError(t, checkDeadLetterTopic("orders", "failed", false))
	err := checkDeadLetterTopic("orders", "failed", true)
	require.ErrorIs(t, err, ErrInvalidConfig)
	require.ErrorContains(t, err, "another hash slot")
}

func TestDeadLetterTopicOfClient(t *testing.T) {
	single := redis.NewClient(&redis.Options{})
	defer single.Close()
	cluster := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{"127.0.0.1:1"}})
	defer cluster.Close()
	failed := func(topic string) string { return "failed" }

	got, err := deadLetterTopic("orders", nil, nil, cluster)
	require.NoError(t, err)
	require.Equal(t, "{orders}:dead", got)
	got, err = deadLetterTopic("orders", failed, nil, single)
	require.NoError(t, err)
	require.Equal(t, "failed", got)
	_, err = deadLetterTopic("orders", failed, nil, cluster)
	require.ErrorIs(t, err, ErrInvalidConfig)
	_, err = deadLetterTopic("", failed, nil, single)
	require.ErrorIs(t, err, ErrInvalidArgument)
}

func TestRequeueOutcomeNames(t *testing.T) {
	for o := RequeueDone; o <= RequeueTooLarge; o++ {
		require.NotContains(t, o.String(), "outcome")
		require.Contains(t, requeueOutcomes, o)
	}
	require.Equal(t, "outcome 200", RequeueOutcome(200).String())
	require.Equal(t, "outcome 0", RequeueOutcome(0).String())
}

func TestDeadLettersConfigValidate(t *testing.T) {
	_, err := NewDeadLetters(DeadLettersConfig{}, nil)
	require.ErrorIs(t, err, ErrInvalidConfig)
	require.ErrorContains(t, err, "DeadLettersConfig.Client")
	_, err = NewDeadLetters(DeadLettersConfig{Client: new(redis.Ring)}, nil)
	require.ErrorIs(t, err, ErrUnsupportedClient)
}

type failingUnmarshaler func() (*message.Message, error)

func (f failingUnmarshaler) Unmarshal(Entry) (*message.Message, error) { return f() }

func TestDeadLetter_Message(t *testing.T) {
	t.Parallel()
	msg := message.NewMessage("u", []byte(`{"a":1}`))
	msg.Metadata.Set("tenant", "x")
	for _, format := range []StreamFormat{WatermillMarshaler{}, FlamincoMarshaler{}} {
		fields, err := format.Marshal("orders", msg)
		require.NoError(t, err)
		letter := DeadLetter{Topic: "orders", EntryID: "1-0", Fields: fields}
		var unmarshaler Unmarshaler = format
		if format == (WatermillMarshaler{}) {
			unmarshaler = nil // the default
		}
		got, err := letter.Message(unmarshaler)
		require.NoError(t, err)
		require.Equal(t, msg.UUID, got.UUID)
		require.Equal(t, msg.Payload, got.Payload)
		require.Equal(t, msg.Metadata, got.Metadata)
	}
	letter := DeadLetter{Topic: "orders", EntryID: "1-0"}
	for name, unmarshal := range map[string]failingUnmarshaler{
		"panic":   func() (*message.Message, error) { panic("secret") },
		"error":   func() (*message.Message, error) { return nil, errors.New("secret") },
		"nothing": func() (*message.Message, error) { return nil, nil },
	} {
		_, err := letter.Message(unmarshal)
		var failure *DecodeError
		require.ErrorAs(t, err, &failure, name)
		require.Equal(t, "orders", failure.Topic)
		require.Equal(t, "1-0", failure.EntryID)
		require.NotContains(t, err.Error(), "secret")
	}
}
