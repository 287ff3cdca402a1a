package redischannels

import (
	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/bridge"
)

// hubMember is what Hub.Close closes beside channels.
type hubMember struct{ close func() error }

// Close implements hubChannel.
func (m *hubMember) Close() error { return m.close() }

// Stats implements hubChannel: its channels belong to a hub of their own.
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
}
