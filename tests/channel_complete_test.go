package tests

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
	"github.com/flaminco/redischannels/sse"
)

// labelled is a value of every format.
type labelled struct{ ID string }

// followAll returns the values of a loop over Follow that ends by itself, and its last error.
func followAll(t *testing.T, channel *redischannels.Channel[labelled], from redischannels.Position) (ids []string, last error) {
	t.Helper()
	for d, err := range channel.Reader().Follow(soonCtx(t), from) {
		require.NoError(t, last, "nothing comes behind the end")
		if last = err; err == nil {
			ids = append(ids, d.Value.ID)
		} else {
			require.Zero(t, d.Value)
		}
	}
	return ids, last
}

// Complete is local: followers of other processes wait forever. CompleteStream ends them, in every
// format.
func TestChannel_CompleteStream(t *testing.T) {
	t.Parallel()
	for name, format := range map[string]redischannels.StreamFormat{
		"watermill": redischannels.WatermillMarshaler{}, "flaminco": redischannels.FlamincoMarshaler{}, "fields": redischannels.FieldsMarshaler{},
	} {
		for _, cause := range []error{nil, errors.New("the source is broken")} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				key := redistest.Key(t)
				config := redischannels.StreamChannelConfig{Format: format}
				writer := streamOf[labelled](t, newHubOf(t), key, config)
				other := newHubOf(t)
				reader := streamOf[labelled](t, other, key, config)
				write(t, writer, labelled{"1"}, labelled{"2"})
				live := make(chan error, 1)
				go func() {
					_, err := followAll(t, reader, redischannels.Oldest)
					live <- err
				}()
				require.NoError(t, writer.Writer().CompleteStream(t.Context(), cause))
				check := func(err error) (id string) {
					if cause == nil {
						require.Equal(t, io.EOF, err)
						return ""
					}
					var completed *redischannels.CompletedError
					require.ErrorAs(t, err, &completed)
					require.Equal(t, cause.Error(), completed.Reason)
					require.Equal(t, key, completed.Topic)
					return completed.EntryID
				}
				check(<-live)
				ids, err := followAll(t, reader, redischannels.Oldest)
				require.Equal(t, []string{"1", "2"}, ids)
				last, lastErr := reader.Reader().LastID(t.Context())
				require.NoError(t, lastErr)
				if id := check(err); id != "" {
					require.Equal(t, last, id)
				}
				_, err = writer.Writer().Write(t.Context(), labelled{"3"})
				require.ErrorIs(t, err, redischannels.ErrCompleted)
				require.ErrorIs(t, writer.Writer().CompleteStream(t.Context(), nil), redischannels.ErrCompleted)

				// Others may write behind the end: who begins there sees it, and a group sees all values.
				ids = nil
				write(t, reader, labelled{"4"})
				for d, err := range reader.Reader().Follow(soonCtx(t), redischannels.AfterID(last)) {
					require.NoError(t, err)
					ids = append(ids, d.Value.ID)
					break
				}
				require.Equal(t, []string{"4"}, ids)
				for d, err := range reader.Reader().History(t.Context(), redischannels.Oldest) {
					require.NoError(t, err)
					ids = append(ids, d.Value.ID)
				}
				require.Equal(t, []string{"4", "1", "2", "4"}, ids)
				for _, want := range []string{"1", "2", "4"} {
					require.Equal(t, want, drainAcked(t, reader, 1)[0].ID)
				}
				eventuallyPending(t, other.client, key, 0)
				require.Empty(t, other.events.of(redischannels.EventDeadLettered))
				_, ok, err := reader.Reader().TryReceive()
				require.NoError(t, err)
				require.False(t, ok, "nothing is returned for the end")
			})
		}
	}
}

// The clients of a channel's handler see the end, and an EventSource does not come back.
func TestSSE_CompleteStream(t *testing.T) {
	t.Parallel()
	key := redistest.Key(t)
	channel := streamOf[int](t, newHubOf(t), key)
	serve := func() (latest, oldest string) {
		other := streamOf[int](t, newHubOf(t), key)
		start := func(*http.Request) redischannels.Position { return redischannels.Oldest }
		return serveSSE(t, newSSE(t, other, sse.Options[int]{})), serveSSE(t, newSSE(t, other, sse.Options[int]{Start: start}))
	}
	latest, oldest := serve()
	ids := write(t, channel, 1, 2)
	live, all := openSSE(t, latest).live(), openSSE(t, oldest)
	write(t, channel, 3)
	require.NoError(t, channel.Writer().CompleteStream(t.Context(), errors.New("no more")))
	require.Equal(t, []string{"3"}, live.data(1))
	require.Equal(t, []string{"1", "2", "3"}, all.data(3))
	for _, s := range []*sseStream{live, all} {
		require.Equal(t, sse.RunEnd{Status: sse.RunFailed, Error: "no more"}, s.ends())
	}
	newLatest, newOldest := serve() // of a process that has not seen the end
	for _, url := range []string{latest, oldest, newLatest, newOldest} {
		require.Equal(t, http.StatusNoContent, sseStatus(t, url, live.lastID))
		s := openSSE(t, url, after(ids[1]))
		require.Equal(t, []string{"3"}, s.data(1))
		s.ends()
	}
	require.Equal(t, http.StatusNoContent, sseStatus(t, latest, ""))
	require.Equal(t, http.StatusNoContent, sseStatus(t, newLatest, ""))
	s := openSSE(t, newOldest)
	s.data(3)
	s.ends()
}

func TestChannel_CompleteStreamRefused(t *testing.T) {
	t.Parallel()
	hub := newHubOf(t)
	live := must(redischannels.NewPubSubChannel[int](hub.Hub, redistest.Key(t), redischannels.PubSubChannelConfig{}))
	require.ErrorIs(t, live.Writer().CompleteStream(t.Context(), nil), redischannels.ErrNotSupported)
	channel := streamOf[int](t, hub, redistest.Key(t))
	_, err := channel.Writer().With(message.Metadata{redischannels.CompletedKey: ""}).Write(t.Context(), 1)
	require.ErrorIs(t, err, redischannels.ErrInvalidArgument)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	require.Error(t, channel.Writer().CompleteStream(ended, nil))
	require.NoError(t, channel.Writer().Err(), "it may be written again")
	require.NoError(t, channel.Writer().CompleteStream(t.Context(), errors.New(strings.Repeat("é", 2000))))
	for _, err := range channel.Reader().Follow(soonCtx(t), redischannels.Oldest) {
		var completed *redischannels.CompletedError
		require.ErrorAs(t, err, &completed)
		require.Equal(t, strings.Repeat("é", 512), completed.Reason)
	}
}

// sseStatus returns the status of the answer to a client that resumes.
func sseStatus(t *testing.T, url, lastEventID string) int {
	t.Helper()
	request, cancel := sseRequest(t, url, after(lastEventID))
	defer cancel()
	response, err := http.DefaultClient.Do(request)
	require.NoError(t, err)
	require.NoError(t, response.Body.Close())
	return response.StatusCode
}
