package protocodec_test

import (
	"context"
	"testing"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/protocodec"
)

func TestProtobuf(t *testing.T) {
	t.Parallel()
	transport := gochannel.NewGoChannel(gochannel.Config{Persistent: true}, watermill.NopLogger{})
	defer transport.Close()
	config := redischannels.ChannelConfig[*wrapperspb.StringValue]{Codec: protocodec.Codec{}}
	c, err := redischannels.NewChannel(transport, transport, "texts", config)
	require.NoError(t, err)
	defer c.Close()
	_, err = c.Writer().WriteAll(t.Context(), wrapperspb.String("a"), wrapperspb.String(""))
	require.NoError(t, err)
	seen := map[string]bool{}
	for range 2 {
		v, err := c.Reader().Read(t.Context())
		require.NoError(t, err)
		seen[v.GetValue()] = true
	}
	require.Equal(t, map[string]bool{"a": true, "": true}, seen)
	_, err = c.Writer().Write(t.Context(), nil)
	require.ErrorContains(t, err, "nil")

	handler, err := redischannels.HandlerFunc(protocodec.Codec{}, func(context.Context, *wrapperspb.StringValue) error { return nil })
	require.NoError(t, err)
	var failure *redischannels.DecodeError
	require.ErrorAs(t, handler(message.NewMessage("u", []byte{0xff})), &failure)
	_, err = redischannels.HandlerFunc(protocodec.Codec{}, func(context.Context, int) error { return nil })
	require.ErrorIs(t, err, redischannels.ErrInvalidArgument)
	_, err = redischannels.NewChannel(transport, transport, "texts", redischannels.ChannelConfig[string]{Codec: protocodec.Codec{}})
	require.ErrorContains(t, err, "string is not a Protocol Buffers message")
}
