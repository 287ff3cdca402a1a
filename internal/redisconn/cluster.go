package redisconn

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/backoff"
)

// slots is the number of hash slots of a Redis Cluster.
const slots = 16384

// HashTag returns the part of a key that determines its hash slot: the text between the first `{`
// and the first `}` after it. If there is none, or it is empty, ok is false and the whole key
// determines the slot.
func HashTag(key string) (tag string, ok bool) {
	_, rest, ok := strings.Cut(key, "{")
	if !ok {
		return "", false
	}
	tag, _, ok = strings.Cut(rest, "}")
	return tag, ok && tag != ""
}

// Slot returns the hash slot of a key in a Redis Cluster: the CRC16 (XMODEM,
// polynomial 0x1021) of its hash tag.
func Slot(key string) int {
	if tag, ok := HashTag(key); ok {
		key = tag
	}
	var crc uint16
	for i := range len(key) {
		crc ^= uint16(key[i]) << 8
		for range 8 {
			if crc&0x8000 != 0 {
				crc = crc<<1 ^ 0x1021
			} else {
				crc <<= 1
			}
		}
	}
	return int(crc) % slots
}

// Master returns the client of the server that currently owns the key.
func Master(ctx context.Context, client redis.UniversalClient, key string) (*redis.Client, error) {
	switch c := client.(type) {
	case *redis.Client:
		return c, nil
	case *redis.ClusterClient:
		return c.MasterForKey(ctx, key)
	default:
		return nil, fmt.Errorf("redischannels: client type %T cannot be read from", client)
	}
}

// followLimit is how long Follow repeats a command.
const followLimit = time.Second

// Follow calls fn, which sends a command to the master of a key. In Redis Cluster it repeats this
// for about a second while the server is not the master: the client reloads the slots in the
// background.
func Follow(ctx context.Context, client redis.UniversalClient, fn func() error) error {
	_, cluster := client.(*redis.ClusterClient)
	waits := backoff.Backoff{Min: 10 * time.Millisecond, Max: followLimit / 2, Factor: 2}
	for start, n := time.Now(), 1; ; n++ {
		err := fn()
		if !cluster || Classify(err) != KindUnavailable || time.Since(start) > followLimit || !backoff.Wait(ctx.Done(), waits.After(n)) {
			return err
		}
	}
}

// Relocate makes a cluster client reload the slots in the background. go-redis does this by
// itself when a node replies MOVED. A master that is down does not reply, and without Relocate
// its clients dial it even after a replica was promoted.
func Relocate(client redis.UniversalClient) {
	if c, ok := client.(*redis.ClusterClient); ok {
		c.ReloadState(context.Background())
	}
}
