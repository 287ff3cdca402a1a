package redistest

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	clusterSlots   = 16384
	clusterTimeout = 30 * time.Second
)

// Cluster is a Redis Cluster of private servers on the loopback interface.
type Cluster struct {
	// Nodes are the masters, in the order of their slots, and behind them what
	// [Cluster.AddReplica] has added.
	Nodes []*Server

	tb     testing.TB
	opts   []Option
	admins []*redis.Client // of Nodes
}

// StartCluster runs a cluster of masters that own equal parts of the slots. It returns when
// every node knows all others and the cluster is ready. Nodes that die are given up by the
// others after about half a second. It ends with the test, as servers of [Start] do.
func StartCluster(tb testing.TB, masters int, opts ...Option) *Cluster {
	tb.Helper()
	c := &Cluster{tb: tb, opts: append([]Option{Arg("cluster-enabled", "yes"), Arg("cluster-node-timeout", "500"),
		Arg("cluster-replica-validity-factor", "0")}, opts...)}
	for i := range masters {
		c.start()
		first, last := i*clusterSlots/masters, (i+1)*clusterSlots/masters-1
		// CLUSTER ADDSLOTSRANGE is of Redis 7.
		slots := []any{"cluster", "addslots"}
		for slot := first; slot <= last; slot++ {
			slots = append(slots, slot)
		}
		c.do(i, slots...)
		c.do(i, "cluster", "set-config-epoch", i+1) // equal ones are sorted out slowly
	}
	c.meet()
	return c
}

// start runs one more node.
func (c *Cluster) start() {
	c.tb.Helper()
	node := Start(c.tb, c.opts...)
	c.Nodes = append(c.Nodes, node)
	c.admins = append(c.admins, node.Admin(c.tb))
}

// meet introduces all nodes to each other and waits until they agree.
func (c *Cluster) meet() {
	c.tb.Helper()
	for _, node := range c.Nodes[1:] {
		host, port, err := net.SplitHostPort(node.Addr())
		if err != nil {
			c.tb.Fatalf("redistest: cluster: %v", err)
		}
		c.do(0, "cluster", "meet", host, port)
	}
	known := fmt.Sprintf("cluster_known_nodes:%d\r", len(c.Nodes))
	Eventually(c.tb, clusterTimeout, func() bool {
		for i := range c.Nodes {
			info := c.text(i, "cluster", "info")
			if !strings.Contains(info, "cluster_state:ok") || !strings.Contains(info, known) {
				return false
			}
			if strings.Contains(c.text(i, "cluster", "nodes"), "handshake") {
				return false
			}
		}
		return true
	}, "the nodes of the cluster know each other")
}

// AddReplica runs a replica of a master and returns it when it has caught up. It is promoted
// when the master dies.
func (c *Cluster) AddReplica(master int) *Server {
	c.tb.Helper()
	c.start()
	c.meet()
	i := len(c.Nodes) - 1
	id := c.text(master, "cluster", "myid")
	c.do(i, "cluster", "replicate", id)
	Eventually(c.tb, clusterTimeout, func() bool {
		return strings.Contains(c.text(i, "info", "replication"), "master_link_status:up") &&
			strings.Contains(c.text(0, "cluster", "nodes"), "slave "+id)
	}, "the replica has caught up")
	return c.Nodes[i]
}

// Client returns a new client of the cluster, which is closed at the end of the test. Each
// mutate changes the options before the client is made.
func (c *Cluster) Client(tb testing.TB, mutate ...func(*redis.ClusterOptions)) *redis.ClusterClient {
	tb.Helper()
	opts := &redis.ClusterOptions{}
	for _, node := range c.Nodes {
		opts.Addrs = append(opts.Addrs, node.Addr())
	}
	for _, m := range mutate {
		m(opts)
	}
	var client *redis.ClusterClient
	if opts.RouteByLatency {
		known := dialWhenKnown(opts)
		client = redis.NewClusterClient(opts)
		client.OnNewNode(known)
	} else {
		client = redis.NewClusterClient(opts)
	}
	tb.Cleanup(func() { _ = client.Close() })
	return client
}

// dialWhenKnown lets the client of a node dial only when the function that it returns was
// called with it. With RouteByLatency go-redis 9.23 pings a new node while it still writes to
// the node's client, which the race detector finds now and then.
func dialWhenKnown(opts *redis.ClusterOptions) func(*redis.Client) {
	var waiting sync.Map // *redis.Client to chan struct{}
	opts.NewClient = func(opt *redis.Options) *redis.Client {
		known := make(chan struct{})
		dial := opt.Dialer
		if dial == nil {
			dial = redis.NewDialer(opt)
		}
		opt.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
			select {
			case <-known:
				return dial(ctx, network, addr)
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		client := redis.NewClient(opt)
		waiting.Store(client, known)
		return client
	}
	return func(client *redis.Client) {
		if known, ok := waiting.LoadAndDelete(client); ok {
			close(known.(chan struct{}))
		}
	}
}

// Admin is a client of one node, by its place in Nodes.
func (c *Cluster) Admin(node int) *redis.Client { return c.admins[node] }

// Owner is the place in Nodes of the master that owns the slot of a key, as node `asked` sees
// it.
func (c *Cluster) Owner(asked int, key string) int {
	c.tb.Helper()
	slot := c.slot(asked, key)
	// id host:port@bus flags master ping pong epoch link slots...
	for line := range strings.Lines(c.text(asked, "cluster", "nodes")) {
		words := strings.Fields(line)
		addr, _, _ := strings.Cut(words[1], "@")
		for _, part := range words[8:] {
			low, high, isRange := strings.Cut(part, "-")
			first, err1 := strconv.Atoi(low)
			last, err2 := strconv.Atoi(high)
			if !isRange {
				last, err2 = first, err1
			}
			if err1 == nil && err2 == nil && slot >= first && slot <= last { // else a slot on its way
				return slices.IndexFunc(c.Nodes, func(s *Server) bool { return s.Addr() == addr })
			}
		}
	}
	c.tb.Fatalf("redistest: no node owns slot %d", slot)
	return -1
}

// MoveSlot gives the slot of a key with its data to another master in the order of a real
// migration, and returns when all nodes know. A slot that moves again before that can get
// lost: a node that hears late of the first move takes it for the later one.
func (c *Cluster) MoveSlot(key string, to int) {
	c.tb.Helper()
	from, slot := c.Owner(to, key), c.slot(to, key)
	if from == to {
		return
	}
	c.awaitAgreement()
	target := c.begin(from, to, slot)
	c.migrate(from, to, slot)
	c.do(to, "cluster", "setslot", slot, "node", target)
	c.do(from, "cluster", "setslot", slot, "node", target)
	for i := range c.Nodes {
		if i != to && i != from && c.Nodes[i].PID() != 0 && c.isMaster(i) {
			c.do(i, "cluster", "setslot", slot, "node", target)
		}
	}
	c.awaitAgreement()
}

// Split begins to move the slot of a key to another master, and moves that key alone: the others of
// the slot stay.
func (c *Cluster) Split(key string, to int) {
	c.tb.Helper()
	from, slot := c.Owner(to, key), c.slot(to, key)
	c.begin(from, to, slot)
	host, port, _ := strings.Cut(c.Nodes[to].Addr(), ":")
	c.do(from, "migrate", host, port, key, 0, 5000)
}

// begin begins to move a slot, and returns the ID of the new master.
func (c *Cluster) begin(from, to, slot int) (target string) {
	source, target := c.text(from, "cluster", "myid"), c.text(to, "cluster", "myid")
	c.do(to, "cluster", "setslot", slot, "importing", source)
	c.do(from, "cluster", "setslot", slot, "migrating", target)
	return target
}

// migrate moves the keys of a slot.
func (c *Cluster) migrate(from, to, slot int) {
	c.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), clusterTimeout)
	defer cancel()
	keys, err := c.admins[from].ClusterGetKeysInSlot(ctx, slot, 100_000).Result()
	if err != nil {
		c.tb.Fatalf("redistest: CLUSTER GETKEYSINSLOT: %v", err)
	}
	host, port, _ := strings.Cut(c.Nodes[to].Addr(), ":")
	for _, key := range keys {
		c.do(from, "migrate", host, port, key, 0, 5000)
	}
}

// awaitAgreement returns when all masters see the same slots and epochs.
func (c *Cluster) awaitAgreement() {
	c.tb.Helper()
	Eventually(c.tb, clusterTimeout, func() bool {
		views := map[string]bool{}
		for i := range c.Nodes {
			if c.Nodes[i].PID() != 0 && c.isMaster(i) {
				views[c.view(i)] = true
			}
		}
		return len(views) == 1
	}, "all masters agree about the cluster")
}

// view is who owns which slots since which epoch, as a node sees it.
func (c *Cluster) view(node int) string {
	c.tb.Helper()
	var masters []string
	for line := range strings.Lines(c.text(node, "cluster", "nodes")) {
		words := strings.Fields(line)
		if !strings.Contains(words[2], "master") {
			continue
		}
		text := words[0] + " " + words[6]
		for _, part := range words[8:] {
			if part[0] != '[' { // a slot on its way is the node's own affair
				text += " " + part
			}
		}
		masters = append(masters, text)
	}
	slices.Sort(masters)
	return strings.Join(masters, "\n")
}

// isMaster reports whether a node is a master; replicas hear of slots from theirs.
func (c *Cluster) isMaster(node int) bool {
	c.tb.Helper()
	return strings.Contains(c.text(node, "info", "replication"), "role:master")
}

func (c *Cluster) slot(node int, key string) int {
	c.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), clusterTimeout)
	defer cancel()
	slot, err := c.admins[node].ClusterKeySlot(ctx, key).Result()
	if err != nil {
		c.tb.Fatalf("redistest: CLUSTER KEYSLOT: %v", err)
	}
	return int(slot)
}

// do sends a command to one node.
func (c *Cluster) do(node int, args ...any) {
	c.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), clusterTimeout)
	defer cancel()
	if err := c.admins[node].Do(ctx, args...).Err(); err != nil {
		c.tb.Fatalf("redistest: cluster: %v %v: %v", args[0], args[1], err)
	}
}

func (c *Cluster) text(node int, args ...any) string {
	c.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), clusterTimeout)
	defer cancel()
	text, err := c.admins[node].Do(ctx, args...).Text()
	if err != nil {
		c.tb.Fatalf("redistest: cluster: %v %v: %v", args[0], args[1], err)
	}
	return text
}
