package sse

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
)

func TestOptionsValidate(t *testing.T) {
	t.Parallel()
	require.NoError(t, Options[int]{}.Validate())
	require.NoError(t, Options[int]{
		Heartbeat: NoHeartbeat, Retry: NoRetry, MaxClients: UnlimitedClients, LastEventIDParam: NoLastEventIDParam, WriteTimeout: time.Millisecond,
	}.Validate())
	err := Options[int]{
		Heartbeat: time.Microsecond, Retry: -2, WriteTimeout: -1, MaxClients: -2, Buffer: -1, BufferBytes: -1,
	}.Validate()
	require.ErrorIs(t, err, redischannels.ErrInvalidConfig)
	for _, field := range []string{"Heartbeat", "Retry", "WriteTimeout", "MaxClients", "Buffer", "BufferBytes"} {
		require.ErrorContains(t, err, "Options."+field+": ")
	}
	_, err = NewHandler[int](nil, Options[int]{Retry: 1})
	require.ErrorIs(t, err, redischannels.ErrInvalidArgument)
	require.ErrorIs(t, err, redischannels.ErrInvalidConfig)
	require.ErrorContains(t, err, "channel")
	require.ErrorContains(t, err, "Options.Retry")
}

// A channel of another Watermill transport is streamed as well, such as gochannel in unit
// tests.
func TestGenericTransport(t *testing.T) {
	t.Parallel()
	transport := gochannel.NewGoChannel(gochannel.Config{}, watermill.NopLogger{})
	defer transport.Close()
	channel, err := redischannels.NewChannel(transport, transport, "numbers", redischannels.ChannelConfig[int]{})
	require.NoError(t, err)
	defer channel.Close()
	handler, err := NewHandler(channel, Options[int]{Heartbeat: NoHeartbeat, Retry: NoRetry})
	require.NoError(t, err)
	written := make(chan string)
	w := &pipe{ResponseRecorder: httptest.NewRecorder(), written: written}
	served := make(chan struct{})
	go func() {
		defer close(served)
		handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
	}()
	require.Empty(t, <-written, "the head, when the client is live")
	_, err = channel.Writer().Write(t.Context(), 7)
	require.NoError(t, err)
	require.Equal(t, "data: 7\n\n", <-written)
	require.NoError(t, handler.Close())
	<-served
	require.NoError(t, handler.Close(), "again")
}

// pipe reports what was flushed.
type pipe struct {
	*httptest.ResponseRecorder
	written chan string
}

func (p *pipe) Flush() {
	p.written <- p.Body.String()
	p.Body = new(bytes.Buffer)
}

func (p *pipe) Write(b []byte) (int, error) { return p.Body.Write(b) }
