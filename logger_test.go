package redischannels

import (
	"bytes"
	"errors"
	"log"
	"log/slog"
	"testing"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

// Without a logger, errors and the line of Subscribe are written, and nothing else.
func TestDefaultLogger(t *testing.T) {
	var written bytes.Buffer
	before, out, flags := slog.Default(), log.Writer(), log.Flags()
	t.Cleanup(func() {
		slog.SetDefault(before)
		log.SetOutput(out) // SetDefault has given it to slog
		log.SetFlags(flags)
	})
	logger := loggerOrDefault(nil).With(watermill.LogFields{"topic": "orders"})
	slog.SetDefault(slog.New(slog.NewTextHandler(&written, &slog.HandlerOptions{
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		},
	})))
	logger.Trace("trace", nil)
	logger.Debug("debug", nil)
	logger.Info("info", nil)
	logger.Error("failed", errors.New("cause"), watermill.LogFields{"entries": 2, "consumer_group": "g"})
	logSubscribed(logger, "subscribed", watermill.LogFields{"lag": 5})
	require.Equal(t, "level=ERROR msg=failed err=cause consumer_group=g entries=2 topic=orders\n"+
		"level=INFO msg=subscribed lag=5 topic=orders\n", written.String())

	written.Reset()
	require.Equal(t, watermill.NopLogger{}, loggerOrDefault(watermill.NopLogger{}))
	captured := watermill.NewCaptureLogger()
	logSubscribed(captured, "subscribed", watermill.LogFields{"lag": 5})
	require.True(t, captured.Has(watermill.CapturedMessage{Level: watermill.InfoLogLevel, Msg: "subscribed", Fields: watermill.LogFields{"lag": 5}}))
	require.Empty(t, written.String())
}

func TestDefaultLogger_OfEveryConstructor(t *testing.T) {
	t.Parallel()
	client := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"})
	t.Cleanup(func() { _ = client.Close() })
	for given, want := range map[watermill.LoggerAdapter]watermill.LoggerAdapter{
		nil: defaultLogger{}, watermill.NopLogger{}: watermill.NopLogger{},
	} {
		publisher, err := NewPublisher(PublisherConfig{Client: client}, given)
		require.NoError(t, err)
		subscriber, err := NewSubscriber(SubscriberConfig{Client: client}, given)
		require.NoError(t, err)
		pubSubPublisher, err := NewPubSubPublisher(PubSubPublisherConfig{Client: client}, given)
		require.NoError(t, err)
		pubSubSubscriber, err := NewPubSubSubscriber(PubSubSubscriberConfig{Client: client}, given)
		require.NoError(t, err)
		letters, err := NewDeadLetters(DeadLettersConfig{Client: client}, given)
		require.NoError(t, err)
		hub, err := NewHub(client, HubConfig{Logger: given})
		require.NoError(t, err)
		channel, err := NewChannel(nil, nil, "k", ChannelConfig[int]{Logger: given})
		require.NoError(t, err)
		for name, logger := range map[string]watermill.LoggerAdapter{
			"Publisher": publisher.logger, "Subscriber": subscriber.logger,
			"PubSubPublisher": pubSubPublisher.logger, "PubSubSubscriber": pubSubSubscriber.logger,
			"DeadLetters": letters.logger, "Hub": hub.config.Logger, "Channel": channel.reader.transport.logger,
		} {
			require.IsType(t, want, logger, name)
		}
	}
}
