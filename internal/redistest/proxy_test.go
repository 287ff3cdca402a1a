package redistest

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

// proxied returns a proxy in front of the shared server, a client through it that never
// retries, and one that goes around it.
func proxied(t *testing.T, mutate ...func(*redis.Options)) (p *Proxy, through, direct *redis.Client) {
	s := Shared(t)
	p = NewProxy(t, s.Addr())
	mutate = append([]func(*redis.Options){Via(p), func(o *redis.Options) { o.MaxRetries = -1 }}, mutate...)
	return p, s.Client(t, mutate...), s.Client(t)
}

func add(key, value string) *redis.XAddArgs {
	return &redis.XAddArgs{Stream: key, Values: []string{"field", value}}
}

func TestProxyForwards(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	for _, protocol := range []int{2, 3} {
		for _, byteWise := range []bool{false, true} {
			t.Run(fmt.Sprintf("RESP%d byteWise %t", protocol, byteWise), func(t *testing.T) {
				t.Parallel()
				p, through, _ := proxied(t, func(o *redis.Options) { o.Protocol = protocol })
				p.ByteWise(byteWise)
				big := strings.Repeat("0123456789", 5_000)
				key := Key(t)
				pipe := through.Pipeline()
				for i := range 100 {
					pipe.RPush(ctx, key, i)
				}
				pipe.Set(ctx, key+":big", big, 0)
				pipe.Get(ctx, key+":missing")
				_, err := pipe.Exec(ctx)
				require.ErrorIs(t, err, redis.Nil)
				require.Len(t, through.LRange(ctx, key, 0, -1).Val(), 100)
				require.Equal(t, big, through.Get(ctx, key+":big").Val())

				sub := through.Subscribe(ctx, key)
				defer sub.Close()
				_, err = sub.Receive(ctx)
				require.NoError(t, err)
				require.NoError(t, through.Publish(ctx, key, "hello").Err())
				msg, err := sub.ReceiveMessage(ctx)
				require.NoError(t, err)
				require.Equal(t, "hello", msg.Payload)
				require.Equal(t, p.Accepted(), p.Connections())
			})
		}
	}
}

func TestProxyForwardsTLS(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	s := Start(t, TLS())
	require.NoError(t, s.Client(t, Via(NewProxy(t, s.Addr()))).Set(ctx, "key", "value", 0).Err())
}

func TestDropReplyExecutesTheCommand(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	p, through, direct := proxied(t)
	key := Key(t)
	drop := p.DropReply(1, And(Command("xadd"), Contains(key)))

	require.Error(t, through.XAdd(ctx, add(key, "lost reply")).Err())
	drop.Wait(t, soon)
	require.Equal(t, 1, drop.Count())
	require.EqualValues(t, 1, direct.XLen(ctx, key).Val())

	require.NoError(t, through.XAdd(ctx, add(key, "later")).Err(), "the rule is used up")
	require.EqualValues(t, 2, direct.XLen(ctx, key).Val())
}

// With its default of three retries go-redis writes the entry twice and answers nil: the
// failure that the library's publisher must not have.
func TestDropReplyShowsTheRetryOfGoRedis(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	p, through, direct := proxied(t, func(o *redis.Options) { o.MaxRetries = 0 })
	key := Key(t)
	p.DropReply(1, Command("XADD"))
	require.NoError(t, through.XAdd(ctx, add(key, "twice")).Err())
	require.EqualValues(t, 2, direct.XLen(ctx, key).Val())
}

func TestDropReplyInPipeline(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	p, through, direct := proxied(t)
	key := Key(t)
	p.DropReply(1, Contains("second"))
	pipe := through.Pipeline()
	first := pipe.XAdd(ctx, add(key, "first"))
	second := pipe.XAdd(ctx, add(key, "second"))
	third := pipe.XAdd(ctx, add(key, "third"))
	_, err := pipe.Exec(ctx)
	require.Error(t, err)
	require.NotEmpty(t, first.Val(), "its reply has come, although go-redis sets the error of all")
	require.Empty(t, second.Val())
	require.Empty(t, third.Val())
	require.EqualValues(t, 2, direct.XLen(ctx, key).Val(), "the third is not forwarded")
}

func TestDropReplyInTransactionIsThatOfEXEC(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	p, through, direct := proxied(t)
	key := Key(t)
	drop := p.DropReply(1, Command("XADD"))
	pipe := through.TxPipeline()
	pipe.XAdd(ctx, add(key, "first"))
	pipe.XAdd(ctx, add(key, "second"))
	_, err := pipe.Exec(ctx)
	require.Error(t, err)
	require.Equal(t, 1, drop.Count())
	require.EqualValues(t, 2, direct.XLen(ctx, key).Val())
}

// A blocked read has been sent long before the rule is made, and may return nil first.
func TestDropReplyOfBlockedRead(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	p, through, direct := proxied(t)
	key := Key(t)
	require.NoError(t, direct.XGroupCreateMkStream(ctx, key, "group", "0").Err())
	read := func(block time.Duration) error {
		return through.XReadGroup(ctx, &redis.XReadGroupArgs{
			Group: "group", Consumer: "me", Streams: []string{key, ">"}, Block: block,
		}).Err()
	}
	drop := p.DropReplyIf(1, Command("XREADGROUP"), NotNil)
	require.ErrorIs(t, read(10*time.Millisecond), redis.Nil)
	require.Zero(t, drop.Count())
	drop.Remove()

	failed := make(chan error, 1)
	go func() { failed <- read(20 * time.Second) }()
	Eventually(t, soon, func() bool {
		return strings.Contains(direct.ClientList(ctx).Val(), "flags=b")
	}, "the read blocks")
	drop = p.DropReplyIf(1, Command("XREADGROUP"), NotNil)
	require.NoError(t, direct.XAdd(ctx, add(key, "unseen")).Err())
	err := <-failed
	require.Error(t, err)
	require.NotErrorIs(t, err, redis.Nil)
	require.Equal(t, 1, drop.Count())
	require.EqualValues(t, 1, direct.XPending(ctx, key, "group").Val().Count)
}

func TestDropRequestExecutesNothing(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	p, through, direct := proxied(t)
	key := Key(t)
	drop := p.DropRequest(2, Command("XADD"))
	for range 2 {
		require.Error(t, through.XAdd(ctx, add(key, "never")).Err())
	}
	drop.Wait(t, soon)
	require.NoError(t, through.XAdd(ctx, add(key, "once")).Err())
	require.EqualValues(t, 1, direct.XLen(ctx, key).Val())
}

func TestBeforeRequestAndBeforeReply(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	p, through, direct := proxied(t)
	key := Key(t)
	var before, after int64
	p.BeforeRequest(1, Command("XADD"), func() { before = direct.XLen(ctx, key).Val() })
	p.BeforeReply(1, Command("XADD"), func() { after = direct.XLen(ctx, key).Val() })
	require.NoError(t, through.XAdd(ctx, add(key, "one")).Err())
	require.EqualValues(t, 0, before)
	require.EqualValues(t, 1, after)
}

func TestBlackholeKeepsConnectionsOpen(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	p, through, direct := proxied(t, func(o *redis.Options) { o.ReadTimeout = time.Second })
	key := Key(t)
	require.NoError(t, through.Set(ctx, key, "before", 0).Err())
	idle := dial(t, p)

	p.Blackhole(true)
	var timeout net.Error
	require.ErrorAs(t, through.Set(ctx, key, "swallowed", 0).Err(), &timeout)
	require.True(t, timeout.Timeout())
	require.Equal(t, "before", direct.Get(ctx, key).Val())
	fresh := dial(t, p)
	_, err := fresh.Write([]byte("*1\r\n$4\r\nPING\r\n"))
	require.NoError(t, err)
	Eventually(t, soon, func() bool { return robbed(p, fresh) }, "the proxy swallows")

	p.Blackhole(false)
	require.NoError(t, through.Set(ctx, key, "after", 0).Err())
	require.Equal(t, "+PONG\r\n", ping(t, idle), "an idle connection goes on")
	_, err = fresh.Read(make([]byte, 1))
	require.Error(t, err, "a robbed connection is closed")
}

// robbed reports whether the proxy has swallowed something of this connection.
func robbed(p *Proxy, conn net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.links {
		if l.client.RemoteAddr().String() == conn.LocalAddr().String() {
			return l.robbed
		}
	}
	return false
}

func dial(t *testing.T, p *Proxy) net.Conn {
	conn, err := net.Dial("tcp", p.Addr())
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	require.NoError(t, conn.SetDeadline(time.Now().Add(soon)))
	return conn
}

func ping(t *testing.T, conn net.Conn) string {
	_, err := conn.Write([]byte("*1\r\n$4\r\nPING\r\n"))
	require.NoError(t, err)
	reply := make([]byte, 7)
	_, err = conn.Read(reply)
	require.NoError(t, err)
	return string(reply)
}

func TestCutClosesOpenConnectionsOnly(t *testing.T) {
	t.Parallel()
	p, _, _ := proxied(t)
	conn := dial(t, p)
	ping(t, conn)
	p.Cut()
	_, err := conn.Read(make([]byte, 1))
	require.Error(t, err)
	ping(t, dial(t, p))
	Eventually(t, soon, func() bool { return p.Connections() == 1 }, "one connection is left")
	require.Equal(t, 2, p.Accepted())
}

// Cutting a connection waited for one that forwarded a request, and that one for the proxy.
func TestCutUnderLoad(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	p, through, _ := proxied(t)
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					_ = through.Ping(ctx).Err()
				}
			}
		})
	}
	defer time.AfterFunc(time.Minute, func() { panic("the proxy is stuck") }).Stop() // so that no wait for its end is needed
	for p.Accepted() < 500 {
		p.Cut()
	}
	close(stop)
	wg.Wait()
}

func TestRefuseFailsTheDial(t *testing.T) {
	t.Parallel()
	p, _, _ := proxied(t)
	conn := dial(t, p)
	p.Refuse(true)
	_, err := conn.Read(make([]byte, 1))
	require.Error(t, err)
	_, err = net.Dial("tcp", p.Addr())
	require.True(t, errors.Is(err, syscall.ECONNREFUSED), "%v", err)
	p.Refuse(false)
	ping(t, dial(t, p))
}

func TestDelayIsPerDirection(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	p, through, _ := proxied(t)
	require.NoError(t, through.Ping(ctx).Err())
	p.Delay(30 * time.Millisecond)
	start := time.Now()
	require.NoError(t, through.Ping(ctx).Err())
	require.GreaterOrEqual(t, time.Since(start), 60*time.Millisecond)
}

// A delay of each chunk adds up; with a latency the chunks are delayed together.
func TestLatencyDoesNotBoundTheBandwidth(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	p, through, direct := proxied(t)
	key, big := Key(t), strings.Repeat("x", 4<<20)
	require.NoError(t, through.Ping(ctx).Err())
	p.Latency(100 * time.Millisecond)
	start := time.Now()
	require.NoError(t, through.Set(ctx, key, big, 0).Err())
	require.Equal(t, big, through.Get(ctx, key).Val())
	took := time.Since(start)
	require.GreaterOrEqual(t, took, 400*time.Millisecond)
	require.Less(t, took, 2*time.Second, "64 chunks and more, one after the other, would take 12 s")
	p.Latency(0)
	require.NoError(t, through.Set(ctx, key, "after", 0).Err())
	require.Equal(t, "after", direct.Get(ctx, key).Val())
	p.Latency(time.Minute)
	p.Cut() // what is blocked does not keep the proxy from its end
}

func TestSetTargetMovesNewConnections(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	a, b := Start(t), Start(t)
	p := NewProxy(t, a.Addr())
	through := a.Client(t, Via(p))
	require.NoError(t, through.Set(ctx, "key", "a", 0).Err())
	p.SetTarget(b.Addr())
	require.Equal(t, "a", through.Get(ctx, "key").Val(), "the open connection stays")
	p.Cut()
	require.ErrorIs(t, through.Get(ctx, "key").Err(), redis.Nil)
}
