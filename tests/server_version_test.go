package tests

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// A server that lacks a command is found out by the first entry that has to be recovered,
// at which nothing looks. XAUTOCLAIM came with Redis 6.2.
func TestServer_TooOldForStreams(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, redistest.Arg("rename-command", "XAUTOCLAIM", ""))
	client := server.Client(t)
	_, err := newSub(t, client).Subscribe(t.Context(), redistest.Key(t))
	require.ErrorIs(t, err, redischannels.ErrUnsupportedServer)

	// Without a group nothing of it is needed.
	messages := newSub(t, client, fanOut).subscribe(t, "all")
	publish(t, client, "all", "m")
	require.Equal(t, []string{"m"}, receiveAcked(t, messages, 1))
}

// A server whose scripts are switched off is found out by Subscribe, and the error has its reply.
func TestServer_WithoutScripts(t *testing.T) {
	t.Parallel()
	client := redistest.Start(t, redistest.Arg("rename-command", "EVAL", ""), redistest.Arg("rename-command", "EVALSHA", "")).Client(t)
	_, err := newSub(t, client).Subscribe(t.Context(), redistest.Key(t))
	require.ErrorIs(t, err, redischannels.ErrUnsupportedServer)
	require.Regexp(t, "unknown command ['`]eval", err.Error())

	client = redistest.Start(t).Client(t)
	if client.Do(t.Context(), "MODULE", "UNLOAD", "lua").Err() != nil {
		return // its scripts are no module
	}
	_, err = newSub(t, client).Subscribe(t.Context(), redistest.Key(t))
	require.ErrorContains(t, err, "scripting engine")
}

// Shard channels came with Redis 7.0, and an older server calls them an unknown command.
func TestServer_TooOldForShardChannels(t *testing.T) {
	t.Parallel()
	var options []redistest.Option
	if redistest.IsRedis7(t, redistest.Shared(t).Client(t)) {
		options = []redistest.Option{redistest.Arg("rename-command", "SSUBSCRIBE", ""), redistest.Arg("rename-command", "SPUBLISH", "")}
	}
	client, topic := redistest.Start(t, options...).Client(t), redistest.Key(t)
	sub, err := redischannels.NewPubSubSubscriber(redischannels.PubSubSubscriberConfig{Client: client, Sharded: true}, nil)
	require.NoError(t, err)
	t.Cleanup(func() { _ = sub.Close() })
	_, err = sub.Subscribe(t.Context(), topic)
	require.ErrorIs(t, err, redischannels.ErrUnsupportedServer)
	require.ErrorContains(t, err, "shard channels need redis 7")
	err = newPubSubPub(t, client, shardedPub).Publish(topic, pubMessages("m", 1)...)
	require.ErrorIs(t, err, redischannels.ErrUnsupportedServer)
	requireOutcomes(t, err, redischannels.OutcomeNotAppended, 1)

	messages := newPubSub(t, client).subscribe(t, topic)
	say(t, newPubSubPub(t, client), topic, "m")
	require.Equal(t, []string{"m"}, receiveAcked(t, messages, 1), "others need nothing of it")
}
