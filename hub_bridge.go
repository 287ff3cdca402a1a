package redischannels

import (
	"context"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/bridge"
	"github.com/flaminco/redischannels/internal/housekeeper"
)

// hubMember is a value other than a channel that Hub.Close closes.
type hubMember struct{ close func() error }

// Close implements hubChannel.
func (m *hubMember) Close() error { return m.close() }

// Stats implements hubChannel: its channels belong to another hub.
func (m *hubMember) Stats() []SubscriptionStats { return nil }

func init() {
	bridge.JoinHub = func(hub any, close func() error) (any, func(), error) {
		h := hub.(*Hub)
		if err := h.life.Enter(); err != nil {
			return nil, nil, err
		}
		defer h.life.Leave()
		own, err := NewHub(h.client, HubConfig{
			OnEvent: h.config.OnEvent, OnReadClient: h.config.OnReadClient, SideKeys: h.config.SideKeys, Logger: h.config.Logger,
		})
		if err != nil {
			return nil, nil, err
		}
		member := &hubMember{close}
		h.add(member)
		return own, func() { h.remove(member) }, nil
	}
	bridge.OnReadClient = func(hub any) func(*redis.Client) { return hub.(*Hub).config.OnReadClient }
	bridge.RedisError = redisError
	bridge.CheckClient = supportedClient
	bridge.SideKeys = sideKeys
	bridge.DeadLetterTopic = deadLetterTopic
	bridge.GroupStart = func(position string) (string, error) {
		p := Position(position)
		return p.groupStart(), p.validate()
	}
	bridge.Logger = loggerOrDefault
	bridge.KeeperLog = func(logger watermill.LoggerAdapter) housekeeper.Observer {
		logger = loggerOrDefault(logger)
		return keeperObserver{func(e Event) { logKeeperEvent(logger, e) }}
	}
	bridge.RunBeside = func(ctx context.Context, keeper any, beside func(context.Context, func(error))) error {
		return keeper.(*Housekeeper).runBeside(ctx, beside)
	}
	bridge.Pack = func(marshaler any, topic string, msg *message.Message) ([]byte, error) {
		p := Publisher{config: PublisherConfig{Marshaler: marshaler.(Marshaler)}}
		return p.packed(topic, msg, true)
	}
	bridge.Encode = func(writer, value any) (*message.Message, error) { return writer.(encoder).encodeAny(value) }
}
