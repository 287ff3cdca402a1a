package tail

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/redistest"
	"github.com/flaminco/redischannels/internal/stream"
)

const soon = 10 * time.Second

// seen is a PagerObserver that keeps what it is given.
type seen struct {
	mu      sync.Mutex
	gaps    []Gap
	rewinds []Rewind
	down    []error
	up      int
}

func (s *seen) Read() {}

func (s *seen) note(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

func (s *seen) Disconnected(err error)    { s.note(func() { s.down = append(s.down, err) }) }
func (s *seen) Reconnected(time.Duration) { s.note(func() { s.up++ }) }
func (s *seen) Gap(gap Gap)               { s.note(func() { s.gaps = append(s.gaps, gap) }) }
func (s *seen) Rewound(r Rewind)          { s.note(func() { s.rewinds = append(s.rewinds, r) }) }

// harness is Readers of a client, with the commands that all of their clients send.
type harness struct {
	*Readers
	client   *redis.Client
	commands *redistest.Hook
}

func newHarness(t *testing.T, server *redistest.Server) *harness {
	t.Helper()
	h := &harness{client: server.Client(t), commands: redistest.NewHook()}
	counted := server.Client(t)
	counted.AddHook(h.commands)
	h.Readers = NewReaders(Config{
		Client: counted, BlockTime: time.Second, PageBytes: 8 << 20,
		OnReadClient: func(client *redis.Client) { client.AddHook(h.commands) },
	})
	t.Cleanup(h.Close)
	return h
}

var latest = stream.Start{End: true}

func after(id stream.ID) stream.Start { return stream.Start{After: id} }

func (h *harness) pager(t *testing.T, topic string, start stream.Start, limit int) (*Pager, *seen) {
	t.Helper()
	observer := new(seen)
	p, err := h.Open(t.Context(), topic, start, limit, 8<<20, observer)
	require.NoError(t, err)
	t.Cleanup(p.Close)
	return p, observer
}

// blocked waits for the one reader to wait for all of n topics, and returns it.
func (h *harness) blocked(t *testing.T, n int) *reader {
	t.Helper()
	var found *reader
	redistest.Eventually(t, soon, func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		joined := 0
		for found = range h.readers {
			for topic := range found.topics {
				joined += len(topic.members)
			}
		}
		return joined == n && found.read != nil
	}, "a shared read of all topics")
	redistest.Eventually(t, soon, func() bool { return redistest.BlockedClients(t, h.client) == 1 }, "it waits")
	return found
}

func add(t *testing.T, client redis.Cmdable, topic, id, value string) {
	t.Helper()
	require.NoError(t, client.XAdd(t.Context(), &redis.XAddArgs{Stream: topic, ID: id, Values: []string{"v", value}}).Err())
}

// next returns the next page and the values in it.
func next(t *testing.T, p *Pager) (Page, []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	page, err := p.Next(ctx)
	require.NoError(t, err)
	var values []string
	for i := range page.Entries {
		page.Entries[i].Fields(func(_, value []byte) { values = append(values, string(value)) })
	}
	return page, values
}

// live calls Next in a goroutine, so that the pager joins the shared reader.
func live(t *testing.T, p *Pager) <-chan Page {
	pages := make(chan Page, 100)
	var reading sync.WaitGroup
	reading.Go(func() {
		for {
			page, err := p.Next(t.Context())
			if err != nil {
				return
			}
			pages <- page
		}
	})
	t.Cleanup(func() {
		p.Close()
		reading.Wait()
	})
	return pages
}

func receive(t *testing.T, pages <-chan Page) Page {
	t.Helper()
	select {
	case page := <-pages:
		return page
	case <-time.After(soon):
		require.FailNow(t, "no page")
		return Page{}
	}
}

// Periodic checks find changes that no entry shows to a blocked read: a stream that went back,
// and one whose entries were all trimmed before they were read.
func TestReader_LooksFromTimeToTime(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		change func(redis.Pipeliner, string)
		next   string // ID of the next entry
	}{
		"went back": {func(tx redis.Pipeliner, topic string) {
			tx.Del(t.Context(), topic)
			tx.XAdd(t.Context(), &redis.XAddArgs{Stream: topic, ID: "50-0", Values: []string{"v", "never seen"}})
			tx.XDel(t.Context(), topic, "50-0")
		}, "51-0"},
		"trimmed": {func(tx redis.Pipeliner, topic string) {
			tx.XAdd(t.Context(), &redis.XAddArgs{Stream: topic, ID: "150-0", Values: []string{"v", "never seen"}})
			tx.XTrimMaxLen(t.Context(), topic, 0)
		}, "151-0"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h, topic := newHarness(t, redistest.Start(t)), redistest.Key(t)
			add(t, h.client, topic, "100-0", "read")
			p, observer := h.pager(t, topic, latest, 100)
			pages := live(t, p)
			r := h.blocked(t, 1)
			_, err := h.client.TxPipelined(t.Context(), func(tx redis.Pipeliner) error {
				tt.change(tx, topic)
				return nil
			})
			require.NoError(t, err)

			r.checkAll()
			r.stream.Wake(t.Context())
			switch {
			case name == "went back":
				require.Equal(t, Page{Rewound: &Rewind{stream.ID{Ms: 50}}}, receive(t, pages))
				require.Equal(t, []Rewind{{stream.ID{Ms: 50}}}, observer.rewinds)
			case redistest.IsRedis7(t, h.client): // before that it does not know of it
				gap := Gap{After: stream.ID{Ms: 100}, Next: stream.ID{Ms: 150}}
				require.Equal(t, Page{Gap: &gap}, receive(t, pages))
				require.Equal(t, []Gap{gap}, observer.gaps)
			}
			add(t, h.client, topic, tt.next, "on")
			page := receive(t, pages)
			require.Nil(t, page.Gap)
			require.Len(t, page.Entries, 1)
			require.Equal(t, tt.next, page.Entries[0].Text)
		})
	}
}

// The checks were one script per stream, one after the other: with 10,000 topics hundreds of
// commands per second, and a reader that reads nothing meanwhile.
func TestReader_LooksAtManyTogether(t *testing.T) {
	t.Parallel()
	const topics = 40
	h, topic := newHarness(t, redistest.Start(t)), redistest.Key(t)
	name := func(i int) string { return fmt.Sprintf("{%s}:%d", topic, i) }
	var pages <-chan Page
	for i := range topics {
		p, _ := h.pager(t, name(i), latest, 100)
		pages = live(t, p)
	}
	r := h.blocked(t, topics)
	looks := func() int { return h.commands.Count("evalsha") + h.commands.Count("eval") }
	before := h.commands.Counts()
	for _, lost := range []bool{false, true} { // the script
		if lost {
			require.NoError(t, h.client.ScriptFlush(t.Context()).Err())
		}
		before := looks()
		r.checkAll()
		r.stream.Wake(t.Context())
		redistest.Eventually(t, soon, func() bool {
			return looks() > before && redistest.BlockedClients(t, h.client) == 1
		}, "it has looked and reads again")
		require.LessOrEqual(t, looks()-before, map[bool]int{false: 3, true: 6}[lost])
	}
	add(t, h.client, name(topics-1), "*", "on")
	require.Len(t, receive(t, pages).Entries, 1)
	require.LessOrEqual(t, h.commands.Count("xread")-before["xread"], 4, "none has left the reader")
}

// A page that is full may have passed over entries that were trimmed, so the stream was looked
// at, by a round trip more, whenever a hundred messages were published at once.
func TestReader_LooksAtNoUsualPage(t *testing.T) {
	t.Parallel()
	const batch = 100
	h, topic := newHarness(t, redistest.Start(t)), redistest.Key(t)
	publish := func(n int) {
		_, err := h.client.TxPipelined(t.Context(), func(tx redis.Pipeliner) error {
			for range n {
				tx.XAdd(t.Context(), &redis.XAddArgs{Stream: topic, Values: []string{"v", "on"}})
			}
			return nil
		})
		require.NoError(t, err)
	}
	publish(2 * batch)
	p, _ := h.pager(t, topic, latest, 1000)
	pages := live(t, p)
	h.blocked(t, 1)
	publish(1) // the size of entries is known from now on
	require.Len(t, receive(t, pages).Entries, 1)
	looks := h.commands.Count("evalsha")
	for range 3 {
		publish(batch)
		require.Len(t, receive(t, pages).Entries, batch)
	}
	require.Equal(t, looks, h.commands.Count("evalsha"))
}

// A read was cut because the command that was to wake it had no answer, and its followers read by
// themselves over the caller's pool, where each connection that is as silent takes a ReadTimeout.
func TestReader_SilentPoolIsLeftAlone(t *testing.T) {
	t.Parallel()
	h, topic := newHarness(t, redistest.Start(t)), redistest.Key(t)
	first, _ := h.pager(t, topic, latest, 100)
	pages := live(t, first)
	h.blocked(t, 1)
	var silent, used atomic.Int64
	h.cfg.Client.AddHook(redistest.Before("client unblock", func(ctx context.Context, _ redis.Cmder) error {
		silent.Add(1)
		<-ctx.Done()
		return context.Cause(ctx)
	}).Before("xread", func(_ context.Context, cmd redis.Cmder) error {
		if slices.Contains(cmd.Args(), any(topic)) {
			used.Add(1)
		}
		return nil
	}))
	other := "{" + topic + "}:other"
	second, _ := h.pager(t, other, latest, 100)
	others := live(t, second)
	shared := h.blocked(t, 2)
	redistest.Eventually(t, soon, func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		return shared.interrupted != nil && shared.interrupted != shared.read
	}, "the read without the other was cut")
	h.blocked(t, 2)
	require.Positive(t, silent.Load())
	add(t, h.client, topic, "*", "on")
	require.Len(t, receive(t, pages).Entries, 1)
	add(t, h.client, other, "*", "on")
	require.Len(t, receive(t, others).Entries, 1)
	require.Zero(t, used.Load(), "reads over the caller's pool")
}

// Pages of large entries are no more than what is read into memory that is used again.
func TestReader_PageSizes(t *testing.T) {
	t.Parallel()
	const bytes = 8 << 20
	r := reader{all: NewReaders(Config{PageBytes: bytes})}
	require.Equal(t, firstCount, r.count(1))
	for size, count := range map[int]int{100: sharedCount, 4096: stream.Fitting(4096), 1 << 20: 1} {
		r.largest = size
		require.Equal(t, count, r.count(1))
	}
	r.largest = 4096
	require.Equal(t, bytes/4096/maxTopics, r.count(maxTopics))
}
