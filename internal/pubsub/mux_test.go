package pubsub

import (
	"context"
	"fmt"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/redisconn"
)

// desk is a Mux with one link that nothing reads or writes: a test plays the server.
type desk struct {
	*Mux
	link    *link
	notices []Notice
}

func newDesk(t *testing.T) *desk {
	client := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{"127.0.0.1:1"}})
	t.Cleanup(func() { _ = client.Close() })
	d := &desk{}
	d.Mux = New(Config{Client: client, Notify: func(n Notice) { d.notices = append(d.notices, n) }})
	d.placing = true // nothing is placed
	d.link = d.connect(t, "a:1")
	return d
}

func (d *desk) connect(t *testing.T, key string) *link {
	l := &link{mux: d.Mux, key: key, conn: new(conn), entries: make(map[*entry]struct{}), wake: make(chan struct{}, 1)}
	l.ctx, l.stop = context.WithCancel(t.Context())
	d.links[key] = l
	return l
}

// want begins to subscribe to a shard channel at the link.
func (d *desk) want(name string) (*entry, *waiter) {
	sink := &Sink{Queue: NewQueue(QueueConfig{Messages: 10, Bytes: 1000})}
	e := &entry{name: Name{Shard, name}, sinks: []*Sink{sink}}
	w := &waiter{sink: sink, left: 1, done: make(chan error, 1)}
	e.waiters = []*waiter{w}
	sink.entries = []*entry{e}
	d.names[Shard][name] = e
	d.mu.Lock()
	defer d.mu.Unlock()
	d.join(d.link, e)
	return e, w
}

func (d *desk) confirm(name string) {
	d.received(d.link, &push{kind: pushSubscribed, of: Shard, name: []byte(name)})
}

func (d *desk) end(name string) {
	d.received(d.link, &push{kind: pushUnsubscribed, of: Shard, name: []byte(name)})
}

func (d *desk) moved(name string) {
	d.received(d.link, &push{kind: pushError, text: fmt.Sprintf("MOVED %d b:2", redisconn.Slot(name))})
}

// A slot moves while a name is unsubscribed: the end that comes by itself looks like the
// answer, and the answer, an error, like that of another command.
func TestAnAnswerThatIsOneTooMany(t *testing.T) {
	d := newDesk(t)
	y, yw := d.want("y") // the link stays open
	x, _ := d.want("{t}x")
	d.Unsubscribe(x.sinks[0])
	z, zw := d.want("{t}z")
	w, ww := d.want("w")
	d.confirm("y")
	require.NoError(t, <-yw.done)
	d.confirm("{t}x")
	d.end("{t}x")   // by itself: the slot has moved
	d.moved("{t}x") // the answer to SUNSUBSCRIBE
	d.confirm("w")
	require.NoError(t, <-ww.done, "was not taken for anything")
	require.True(t, w.live)
	require.True(t, y.live)
	require.Equal(t, "b:2", z.hint, "of the same slot, so it has moved as well")
	require.Nil(t, z.link)
	require.Empty(t, zw.done, "it waits for the other node")
	d.moved("{t}z") // its own answer, too late for its caller
	require.Empty(t, d.link.expect)
	require.True(t, y.live)
}

// A command whose answer was taken for another one's is sent again when a later one is
// confirmed.
func TestACommandWithoutAnAnswer(t *testing.T) {
	d := newDesk(t)
	_, aw := d.want("a")
	_, bw := d.want("b")
	d.confirm("b")
	require.NoError(t, <-bw.done)
	require.Empty(t, aw.done)
	require.Len(t, d.link.expect, 1, "a is subscribed to again")
	d.confirm("a")
	require.NoError(t, <-aw.done)
}

// The error reaches us before the end of the subscription does: the gap was not reported.
func TestALiveNameThatHasMoved(t *testing.T) {
	d := newDesk(t)
	_, keep := d.want("keep") // the link stays open
	x, w := d.want("x")
	d.confirm("keep")
	require.NoError(t, <-keep.done)
	d.confirm("x")
	require.NoError(t, <-w.done)
	d.link.subscribe(x) // once more, as after a confirmation that was not recognized
	d.moved("x")
	require.Nil(t, x.link)
	d.end("x")
	d.mu.Lock()
	d.join(d.link, x)
	d.mu.Unlock()
	d.confirm("x")
	require.True(t, x.live)
	require.Len(t, d.notices, 1)
	require.Equal(t, Gap, d.notices[0].Kind)
	require.Equal(t, "x", d.notices[0].Name.Text)
}

// Subscribe and unsubscribe of one name, with answers on their way.
func TestAnswersToEarlierSubscriptions(t *testing.T) {
	d := newDesk(t)
	_, keep := d.want("keep") // the link stays open
	first, _ := d.want("x")
	d.Unsubscribe(first.sinks[0])
	second, w := d.want("x")
	d.confirm("keep")
	require.NoError(t, <-keep.done)
	d.confirm("x") // the first
	require.False(t, second.live)
	d.end("x")
	require.False(t, second.live)
	require.Empty(t, w.done)
	d.confirm("x")
	require.True(t, second.live)
	require.NoError(t, <-w.done)
	require.Empty(t, d.link.expect)
	require.Empty(t, d.notices)

	d.received(d.link, &push{kind: pushSMessage, of: Shard, name: []byte("x"), channel: []byte("x"), payload: []byte("m"), size: 1})
	m, ok, _ := second.sinks[0].Queue.Pop(1)
	require.True(t, ok)
	require.Equal(t, Message{Channel: "x", Payload: []byte("m"), Size: 1}, m)
}

// A name has moved to another connection while the one before still receives its messages: they would
// come twice, or after a gap that was reported already.
func TestAMessageByAConnectionThatTheNameHasLeft(t *testing.T) {
	d := newDesk(t)
	x, w := d.want("x")
	d.confirm("x")
	require.NoError(t, <-w.done)
	message := func(l *link, payload string) {
		d.received(l, &push{kind: pushSMessage, of: Shard, name: []byte("x"), channel: []byte("x"), payload: []byte(payload)})
	}
	message(d.link, "before")
	next := d.connect(t, "b:2")
	d.mu.Lock()
	d.join(next, x)
	d.mu.Unlock()
	message(d.link, "twice")
	message(next, "twice")
	var payloads []string
	for {
		m, ok, _ := x.sinks[0].Queue.Pop(100)
		if !ok {
			break
		}
		payloads = append(payloads, string(m.Payload))
	}
	require.Equal(t, []string{"before", "twice"}, payloads)
}
