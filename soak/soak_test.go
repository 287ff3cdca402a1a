package soak

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

const (
	soakTime = 60 * time.Second // without SOAK
	held     = 2200             // more than a step of a claim scan looks at: messages that are in flight from the beginning to the end
	patience = 45 * time.Second // until everything is handled once nothing is broken any more
)

// process is a publisher or a consumer with the way to its server. Its incarnations come and go.
type process struct {
	name, main, topic string
	settings          []string
	proxy             *redistest.Proxy
	child             *redistest.Child
	now               *incarnation
}

// run is one soak.
type run struct {
	t       *testing.T
	random  *rand.Rand
	server  *redistest.Server
	admin   *redis.Client
	journal *journal
	reading sync.WaitGroup
	counts  map[string]int // faults by name

	publishers, consumers []*process
	slow                  []*process // those of the consumers whose handlers are slow now and then
	holder                *process
	scanner               *process // of the topic scanned; only the server fails it
}

// TestSoakModel breaks what can be broken while processes publish and consume, and then asks
// what became of each message. The seed in its output repeats the faults, not their effects.
func TestSoakModel(t *testing.T) {
	length, seed := soakTime, uint64(time.Now().UnixNano())
	if s := os.Getenv("SOAK"); s != "" {
		var err error
		length, err = time.ParseDuration(s)
		require.NoError(t, err)
	}
	if s := os.Getenv("SOAK_SEED"); s != "" {
		var err error
		seed, err = strconv.ParseUint(s, 10, 64)
		require.NoError(t, err)
	}
	t.Logf("SOAK_SEED=%d SOAK=%s", seed, length)
	r := &run{
		t: t, random: rand.New(rand.NewPCG(seed, 0)), journal: newJournal(), counts: map[string]int{},
	}
	// Processes are killed, not the machine, so nothing waits for the disk.
	r.server = redistest.Start(t, redistest.Arg("appendonly", "yes"), redistest.Arg("appendfsync", "no"))
	r.admin = r.server.Admin(t)
	r.prepare()
	// The proxies are in this process, and a server can be blocked as well.
	stop := make(chan struct{})
	r.reading.Go(func() { r.watchServer(stop) })
	r.reading.Go(func() { watchStalls(stop, func(from time.Time) { r.journal.fault("stall", "", from) }) })

	for end := time.Now().Add(length); time.Now().Before(end); r.wait(time.Second/20, time.Second/4) {
		f := draw(r.random)
		r.counts[f.name]++
		f.run(r)
	}

	for _, p := range r.publishers {
		r.end(p)
	}
	require.NoError(t, r.admin.XGroupDelConsumer(t.Context(), scanned, group, bystander).Err())
	r.drain()
	// The holder releases its additional entries: there must be a consumer that claims them.
	r.end(r.holder)
	r.drain()
	for _, p := range append(r.consumers, r.scanner) {
		r.end(p)
	}
	close(stop)
	r.reading.Wait()
	r.check()
}

// prepare starts everything. The holder comes first: what it holds stands at the head of the
// pending entries, and a scan for entries of crashed consumers has to look behind it.
func (r *run) prepare() {
	ctx := r.t.Context()
	for _, topic := range topics {
		require.NoError(r.t, r.admin.XGroupCreateMkStream(ctx, topic, group, "0").Err())
	}
	r.prepareScans()
	pub, err := redischannels.NewPublisher(redischannels.PublisherConfig{Client: r.admin}, nil)
	require.NoError(r.t, err)
	defer pub.Close()
	var batch []*message.Message
	for n := range held {
		batch = append(batch, message.NewMessage(fmt.Sprint("held-", n), []byte(fmt.Sprintf("held-%d 1", n))))
		r.journal.confirmed[messageKey{keyed, fmt.Sprintf("held-%d", n), 1}] = true
		r.journal.tried[messageKey{keyed, fmt.Sprintf("held-%d", n), 1}] = true
	}
	require.NoError(r.t, pub.Publish(keyed, batch...))
	// Exactly as many as it holds: what is published later is for the others.
	r.holder = &process{name: "holder", main: consumerChild, topic: keyed,
		settings: []string{fmt.Sprint("SOAK_IN_FLIGHT=", held), "SOAK_HOLD=1"}}
	r.start(r.holder)
	redistest.Eventually(r.t, 20*time.Second, func() bool { return r.handled(r.holder.now) == held }, "everything is held")

	for n := range 2 {
		r.publishers = append(r.publishers, &process{name: fmt.Sprint("publisher", n), main: publisherChild})
		r.consumers = append(r.consumers, &process{name: fmt.Sprint("consumer", n), main: consumerChild, topic: keyed,
			settings: []string{"SOAK_IN_FLIGHT=8"}})
	}
	for _, topic := range []string{strict, slowStrict, slowKeyed} {
		inFlight := "SOAK_IN_FLIGHT=1"
		if perKey(topic) {
			inFlight = "SOAK_IN_FLIGHT=8"
		}
		p := &process{name: topic, main: consumerChild, topic: topic, settings: []string{inFlight}}
		if r.consumers = append(r.consumers, p); isSlow(topic) {
			r.slow = append(r.slow, p)
		}
	}
	for _, p := range append(r.consumers, r.publishers...) {
		r.start(p)
	}
}

// bystander is the consumer that has many entries pending in the topic scanned.
const bystander = "bystander"

// prepareScans starts the consumer of the topic scanned.
func (r *run) prepareScans() {
	const part = 1000 // what one pipeline has time for on a loaded machine
	ctx := r.t.Context()
	for from := 0; from < scannedPending; from += part {
		pipe := r.admin.Pipeline()
		for n := from; n < from+part; n++ {
			r.journal.tried[messageKey{scanned, bystander, n}] = true
			pipe.XAdd(ctx, &redis.XAddArgs{Stream: scanned, Values: []any{"payload", fmt.Sprint(bystander, " ", n)}})
		}
		pipe.XReadGroup(ctx, &redis.XReadGroupArgs{
			Group: group, Consumer: bystander, Streams: []string{scanned, ">"}, Count: part, Block: -1,
		})
		_, err := pipe.Exec(ctx)
		require.NoError(r.t, err)
	}
	r.scanner = &process{name: "scanner", main: consumerChild, topic: scanned, settings: []string{"SOAK_IN_FLIGHT=1"}}
	r.start(r.scanner)
	r.scanner.proxy.Delay(scannedDelay)
}

func (r *run) handled(in *incarnation) int {
	r.journal.mu.Lock()
	defer r.journal.mu.Unlock()
	return len(in.starts)
}

// start begins a new incarnation.
func (r *run) start(p *process) {
	r.t.Helper()
	if p.proxy == nil {
		p.proxy = redistest.NewProxy(r.t, r.server.Addr())
	}
	in := r.journal.incarnate(p.name, p.topic)
	r.journal.mu.Lock()
	first := r.journal.last[p.name] + 1
	r.journal.mu.Unlock()
	p.now = in
	child := redistest.StartChild(r.t, p.main, append(p.settings, "SOAK_ADDR="+p.proxy.Addr(), "SOAK_NAME="+p.name,
		"SOAK_TOPIC="+p.topic, fmt.Sprint("SOAK_FIRST=", first))...)
	p.child = child
	r.reading.Go(func() {
		for line := range child.Lines() {
			r.journal.line(in, line)
		}
	})
}

// kill ends a process without a warning and starts another one.
func (r *run) kill(p *process) {
	r.t.Helper()
	r.during("kill", p.name, func() {
		if p.ended() { // a panic, say, which this would hide
			r.t.Errorf("%s has ended by itself", p.name)
		}
		p.child.Kill()
		p.now.killed = time.Now().UnixNano()
		if p.topic != "" {
			// The server may give something to a connection that has just ended.
			r.wait(time.Second/10, time.Second/5)
			for _, consumer := range r.consumersOf(p) {
				p.now.left = append(p.now.left, r.pendingOf(p.topic, consumer)...)
			}
		}
	})
	r.start(p)
}

// consumersOf returns the consumers of the running incarnation of a process, by their names in
// Redis: it may not have reported its own.
func (r *run) consumersOf(p *process) []string {
	r.t.Helper()
	consumers, err := r.admin.XInfoConsumers(r.t.Context(), p.topic, group).Result()
	require.NoError(r.t, err)
	r.journal.mu.Lock()
	defer r.journal.mu.Unlock()
	earlier := map[string]bool{}
	for _, in := range r.journal.processes {
		earlier[in.consumer] = in != p.now
	}
	var names []string
	for _, c := range consumers {
		if strings.HasPrefix(c.Name, p.name+"-") && !earlier[c.Name] {
			names = append(names, c.Name)
		}
	}
	return names
}

// pendingOf returns the entries that are pending for a consumer, those in the return stream by the IDs
// of their originals.
func (r *run) pendingOf(topic, consumer string) (ids []string) {
	r.t.Helper()
	for _, key := range []string{topic, returnStream(topic)} {
		pending, err := r.admin.XPendingExt(r.t.Context(), &redis.XPendingExtArgs{
			Stream: key, Group: group, Start: "-", End: "+", Count: 10_000, Consumer: consumer,
		}).Result()
		require.NoError(r.t, err)
		for _, entry := range pending {
			id := entry.ID
			if key != topic {
				found, err := r.admin.XRange(r.t.Context(), key, id, id).Result()
				require.NoError(r.t, err)
				if len(found) == 0 {
					continue // it was acknowledged meanwhile
				}
				id, _ = found[0].Values["_return_entry_id"].(string)
			}
			ids = append(ids, id)
		}
	}
	return ids
}

func returnStream(topic string) string { return "{" + topic + "}:return:" + group }

// end asks a process to close, waits for it, and notes what is pending for it then.
func (r *run) end(p *process) {
	r.t.Helper()
	_, _ = io.WriteString(p.child.Stdin(), "close\n")
	require.NoError(r.t, p.child.Wait(2*drainTimeout), "%s ends", p.name)
	if p.topic == "" {
		return
	}
	r.journal.mu.Lock()
	consumer := p.now.consumer
	r.journal.mu.Unlock()
	p.now.left = r.pendingOf(p.topic, consumer)
}

// requeue gives dead letters back to their group.
func (r *run) requeue(topic string) {
	r.t.Helper()
	letters, err := redischannels.NewDeadLetters(redischannels.DeadLettersConfig{Client: r.admin}, nil)
	require.NoError(r.t, err)
	var ids []string
	for letter, err := range letters.List(r.t.Context(), topic, redischannels.DeadLetterQuery{Limit: 5}) {
		require.NoError(r.t, err)
		ids = append(ids, letter.ID)
		r.journal.requeue(topic, letter.EntryID)
	}
	_, err = letters.Requeue(r.t.Context(), topic, ids...)
	require.NoError(r.t, err)
}

// ended reports whether no incarnation of the process runs.
func (p *process) ended() bool {
	select {
	case <-p.child.Done():
		return true
	default:
		return false
	}
}

// drain waits until everything is handled but what the holder still has.
func (r *run) drain() {
	r.t.Helper()
	ctx := r.t.Context()
	rest := func() string {
		text := ""
		for _, topic := range topics {
			groups, err := r.admin.XInfoGroups(ctx, topic).Result()
			if err != nil {
				return err.Error()
			}
			consumers, err := r.admin.XInfoConsumers(ctx, topic, group).Result()
			if err != nil {
				return err.Error()
			}
			// By name: while nothing comes, Redis before 7.2 takes a living consumer for an idle
			// one, and it may be removed until it gets something.
			pending, dead, live := int64(0), 0, r.live(topic)
			for _, c := range consumers {
				if !live[c.Name] {
					dead++
				}
				if r.holder.ended() || !strings.HasPrefix(c.Name, r.holder.name) {
					pending += c.Pending
				}
			}
			returned, err := r.admin.XLen(ctx, returnStream(topic)).Result()
			if err != nil {
				return err.Error()
			}
			deferred, err := r.admin.ZCard(ctx, "{"+topic+"}:due:"+group).Result()
			if err != nil {
				return err.Error()
			}
			if behind := r.behind(topic, groups[0]); pending != 0 || behind || dead > 0 || returned+deferred > 0 {
				text += fmt.Sprintf(" %s: %d pending, %d returned, %d deferred, behind %t, %d crashed consumers;", topic, pending, returned, deferred, behind, dead)
			}
		}
		return text
	}
	for deadline := time.Now().Add(patience); rest() != ""; <-time.After(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Errorf("not everything is handled %s after the last fault:%s", patience, rest())
			return
		}
	}
}

// behind reports whether a group has not read everything. (The lag that Redis reports is wrong
// after a restart.)
func (r *run) behind(topic string, g redis.XInfoGroup) bool {
	info, err := r.admin.XInfoStream(r.t.Context(), topic).Result()
	return err != nil || info.LastGeneratedID != g.LastDeliveredID
}

// live are the names of the consumers of a topic that run.
func (r *run) live(topic string) map[string]bool {
	names := map[string]bool{}
	for _, p := range append(r.consumers, r.holder, r.scanner) {
		if p.topic == topic && !p.ended() {
			r.journal.mu.Lock()
			names[p.now.consumer] = true
			r.journal.mu.Unlock()
		}
	}
	return names
}

// watchServer notes when the server takes long for an answer.
func (r *run) watchServer(stop <-chan struct{}) {
	client := redis.NewClient(r.admin.Options())
	defer client.Close()
	for {
		from := time.Now()
		_ = client.Ping(context.Background()).Err()
		if time.Since(from) > minIdle/5 {
			r.journal.fault("slow server", "", from)
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-stop:
			return
		}
	}
}

// during notes the time of a fault.
func (r *run) during(kind, who string, what func()) {
	from := time.Now()
	what()
	r.journal.fault(kind, who, from)
}

// wait lets a time between two bounds pass.
func (r *run) wait(least, most time.Duration) {
	<-time.After(least + time.Duration(r.random.Int64N(int64(most-least))))
}

// consumer draws a consumer, those that share a topic twice as often as the others: most faults
// show only where another process can take over.
func (r *run) consumer() *process {
	var all []*process
	for _, p := range r.consumers {
		if all = append(all, p); !sole(p.topic) {
			all = append(all, p)
		}
	}
	return all[r.random.IntN(len(all))]
}

func (r *run) publisher() *process { return r.publishers[r.random.IntN(len(r.publishers))] }
func (r *run) any() *process {
	if r.random.IntN(3) == 0 {
		return r.publisher()
	}
	return r.consumer()
}
