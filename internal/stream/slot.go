package stream

import (
	"context"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// slots is the number of hash slots of a Redis Cluster.
const slots = 16384

// HashTag returns the part of a key that decides its hash slot: what stands
// between the first `{` and the first `}` behind it. Without such a part, or
// with nothing in it, ok is false and the whole key decides.
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

// Follow calls fn, which asks a master for its own stream, and in Redis Cluster a few times
// more while that is not the master: the client learns in the background where a slot has
// moved to.
func Follow(ctx context.Context, client redis.UniversalClient, fn func() error) error {
	_, cluster := client.(*redis.ClusterClient)
	for wait := 10 * time.Millisecond; ; wait *= 2 {
		err := fn()
		if !cluster || Classify(err) != KindUnavailable || wait > time.Second/2 {
			return err
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return err
		}
	}
}

// Relocate has a cluster client find out again, in the background, who owns which slot.
// go-redis does that when a node says MOVED. A master that is dead says nothing, and its
// clients go on dialling it after a replica was promoted.
func Relocate(client redis.UniversalClient) {
	if c, ok := client.(*redis.ClusterClient); ok {
		c.ReloadState(context.Background())
	}
}
