package redistest

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	sentinelName    = "redistest"
	sentinelTimeout = 30 * time.Second
)

// Sentinels are three sentinels that watch over a master and its replicas, all private
// processes on the loopback interface.
type Sentinels struct {
	// Servers are the data servers, the first master in front.
	Servers []*Server

	tb    testing.TB
	addrs []string // of the sentinels
	admin *redis.SentinelClient
}

// StartSentinels runs a master with replicas, and three sentinels that promote a replica a
// second after the master has failed. It returns when the replicas are in step and the
// sentinels know each other and all servers. Everything ends with the test, as servers of
// [Start] do. Options are those of the data servers.
func StartSentinels(tb testing.TB, replicas int, opts ...Option) *Sentinels {
	tb.Helper()
	opts = append([]Option{Arg("repl-ping-replica-period", "1")}, opts...)
	master := Start(tb, opts...)
	host, port, err := net.SplitHostPort(master.Addr())
	if err != nil {
		tb.Fatalf("redistest: sentinel: %v", err)
	}
	s := &Sentinels{Servers: []*Server{master}, tb: tb}
	for range replicas {
		s.Servers = append(s.Servers, Start(tb, append(slices.Clone(opts), Arg("replicaof", host, port))...))
	}
	admin := master.Admin(tb)
	Eventually(tb, sentinelTimeout, func() bool {
		return strings.Count(info(tb, admin, "replication"), "state=online") == replicas
	}, "the replicas are in step")
	for range 3 {
		s.startSentinel(host, port)
	}
	s.admin = redis.NewSentinelClient(&redis.Options{Addr: s.addrs[0]})
	tb.Cleanup(func() { _ = s.admin.Close() })
	Eventually(tb, sentinelTimeout, func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		others, err := s.admin.Sentinels(ctx, sentinelName).Result()
		known, err2 := s.admin.Replicas(ctx, sentinelName).Result()
		up := slices.IndexFunc(known, func(r map[string]string) bool { return r["master-link-status"] != "ok" }) < 0
		return err == nil && err2 == nil && len(others) == 2 && len(known) == replicas && up
	}, "the sentinels know each other and %d replicas", replicas)
	return s
}

// startSentinel runs one sentinel.
func (s *Sentinels) startSentinel(host, port string) {
	s.tb.Helper()
	p, err := launch(config{sentinel: fmt.Sprintf("sentinel monitor %[1]s %[2]s %[3]s 2\n"+
		"sentinel down-after-milliseconds %[1]s 1000\nsentinel failover-timeout %[1]s 3000\n"+
		"sentinel parallel-syncs %[1]s 5\n", sentinelName, host, port)})
	if err != nil {
		unavailable(s.tb, err)
	}
	s.tb.Cleanup(p.destroy)
	s.addrs = append(s.addrs, p.addr())
}

// Client returns a new client that asks the sentinels for the master. It is closed at the end
// of the test.
func (s *Sentinels) Client(tb testing.TB, mutate ...func(*redis.FailoverOptions)) *redis.Client {
	tb.Helper()
	opts := &redis.FailoverOptions{MasterName: sentinelName, SentinelAddrs: s.addrs, DB: database()}
	for _, m := range mutate {
		m(opts)
	}
	client := redis.NewFailoverClient(opts)
	tb.Cleanup(func() { _ = client.Close() })
	return client
}

// Master is the server that the sentinels call the master now.
func (s *Sentinels) Master() *Server {
	s.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), sentinelTimeout)
	defer cancel()
	at, err := s.admin.GetMasterAddrByName(ctx, sentinelName).Result()
	if err != nil || len(at) != 2 {
		s.tb.Fatalf("redistest: sentinel: %v %v", at, err)
	}
	i := slices.IndexFunc(s.Servers, func(server *Server) bool { return server.Addr() == net.JoinHostPort(at[0], at[1]) })
	if i < 0 {
		s.tb.Fatalf("redistest: sentinel: unknown master %v", at)
	}
	return s.Servers[i]
}

// AwaitFailover returns the new master when the sentinels have promoted one in place of old and
// it takes writes.
func (s *Sentinels) AwaitFailover(old *Server) *Server {
	s.tb.Helper()
	var master *Server
	Eventually(s.tb, sentinelTimeout, func() bool {
		if master = s.Master(); master == old {
			return false
		}
		client := redis.NewClient(&redis.Options{Addr: master.Addr(), MaxRetries: -1})
		defer client.Close()
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		text, err := client.Info(ctx, "replication").Result()
		return err == nil && strings.Contains(text, "role:master")
	}, "a replica is promoted")
	return master
}
