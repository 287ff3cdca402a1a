package keys

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/redisconn"
)

func TestOf_EveryKeyIsInTheSlotOfTheTopic(t *testing.T) {
	t.Parallel()
	for topic, base := range map[string]string{
		"orders":        "{orders}",
		"{orders}":      "{orders}",
		"eu{orders}new": "eu{orders}new",
		"{orders":       "{{orders}", // its tag is `{orders`
		"a{}b{c}":       "",          // the first tag is empty, so there is none
		"a}b":           "",
		"{}":            "",
	} {
		of, err := Of(topic, nil, true)
		if base == "" {
			require.ErrorIs(t, err, ErrNoBase, topic)
			continue
		}
		require.NoError(t, err, topic)
		require.Equal(t, Topic{Name: topic, Base: base}, of)
		for _, key := range []string{of.Dead(), of.Control(), of.Delayed(), of.Due(""), of.Due("g"), of.Due("{g}"), of.Return("g"),
			of.Mover(""), of.Mover("g"), of.Schedules(), of.Audit()} {
			require.Equal(t, redisconn.Slot(topic), redisconn.Slot(key), key)
		}
	}
}

func TestOf_SideKeys(t *testing.T) {
	t.Parallel()
	to := func(base string) func(string) string { return func(string) string { return base } }
	of, err := Of("orders", to("side:{orders}"), true)
	require.NoError(t, err)
	require.Equal(t, "side:{orders}:due:g", of.Due("g"))
	_, err = Of("a}b", to("a}b"), false)
	require.NoError(t, err)
	for _, base := range []string{"", "orders", "{other}", "a}b"} {
		_, err := Of("orders", to(base), true)
		require.ErrorContains(t, err, "SideKeys", base)
	}
}

// Streams beside a topic are told from topics, whatever the topic.
func TestIsSide(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"orders", "a:b", "{a}", "{a}:orders", "x{a}y", "orders:dead", "a{"} {
		topic, err := Of(name, nil, false)
		require.NoError(t, err)
		require.False(t, IsSide(name), name)
		for _, key := range []string{topic.Dead(), topic.Audit(), topic.Return("g"), topic.Return("a:b")} {
			require.True(t, IsSide(key), key)
		}
	}
	for key, side := range map[string]bool{
		"{runs:7}:events:chat": true, "{runs:7}:events": false, "{runs}:events:chat": false, "{runs:x}:events:chat": false,
		"{}:dead": false, "a:return:g": false, "{a}dead": false,
	} {
		require.Equal(t, side, IsSide(key), key)
	}
}
