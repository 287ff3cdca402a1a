// Package redisserver gives the examples their Redis.
package redisserver

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
)

// Open connects to the server that the URL names, or, without a URL, starts an embedded one.
// It returns the server in words, and what closes all that it has opened. Its errors are for
// the user and have no part of the URL, which may hold a password.
func Open(ctx context.Context, redisURL string) (client *redis.Client, server string, closeAll func(), err error) {
	if redisURL == "" {
		server, err := miniredis.Run()
		if err != nil {
			return nil, "", nil, fmt.Errorf("start the embedded Redis server: %w; set REDIS_URL to use another", err)
		}
		client := redis.NewClient(&redis.Options{Addr: server.Addr()})
		return client, "an embedded server, which ends with this program (REDIS_URL names a real one)", func() {
			_ = client.Close()
			server.Close()
		}, nil
	}
	opts, err := redis.ParseURL(redisURL)
	if err != nil {
		var parse *url.Error // holds the URL, which may hold a password
		if errors.As(err, &parse) {
			err = parse.Err
		}
		return nil, "", nil, fmt.Errorf("REDIS_URL must look like redis://user:password@localhost:6379/0: %w", err)
	}
	client = redis.NewClient(opts)
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := client.Ping(ctx).Err(); err != nil {
		_ = client.Close()
		return nil, "", nil, fmt.Errorf("Redis at %s does not answer: %w; without REDIS_URL an embedded server is used", opts.Addr, err)
	}
	return client, fmt.Sprintf("%s, database %d", opts.Addr, opts.DB), func() { _ = client.Close() }, nil
}
