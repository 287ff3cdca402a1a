package tests

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/components/delay"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/delayed"
	"github.com/flaminco/redischannels/internal/housekeeper"
	"github.com/flaminco/redischannels/internal/keys"
	"github.com/flaminco/redischannels/internal/redistest"
	"github.com/flaminco/redischannels/internal/retention"
	"github.com/flaminco/redischannels/schedule"
)

// keeperChild is a process with a Housekeeper of CHILD_TOPIC at CHILD_URL, which trims it with CHILD_TRIM=1. It says "live".
var keeperChild = redistest.ChildMain("housekeeper", func() {
	options, err := redis.ParseURL(os.Getenv("CHILD_URL"))
	if err == nil {
		config := redischannels.HousekeeperConfig{
			Client: redis.NewClient(options), Topics: []string{os.Getenv("CHILD_TOPIC")}, Interval: 200 * time.Millisecond,
		}
		if os.Getenv("CHILD_TRIM") != "" {
			config.TrimConsumed = &redischannels.TrimConsumed{}
		}
		var keeper *redischannels.Housekeeper
		keeper, err = redischannels.NewHousekeeper(config, nil)
		if err == nil {
			fmt.Println("live")
			err = keeper.Run(context.Background())
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
})

func startKeeper(t *testing.T, server *redistest.Server, topic string, env ...string) *redistest.Child {
	t.Helper()
	address := url.URL{Scheme: "redis", Host: server.Options().Addr}
	return redistest.StartChild(t, keeperChild, append(env, "CHILD_URL="+address.String(), "CHILD_TOPIC="+topic)...)
}

// newKeeper runs a Housekeeper of the topic until the end of the test.
func newKeeper(t *testing.T, client redis.UniversalClient, topic string) *events {
	t.Helper()
	seen := &events{t: t}
	keeper, err := redischannels.NewHousekeeper(redischannels.HousekeeperConfig{
		Client: client, Topics: []string{topic}, Interval: 100 * time.Millisecond, OnEvent: seen.add,
	}, nil)
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { done <- keeper.Run(context.Background()) }()
	t.Cleanup(func() {
		require.NoError(t, keeper.Close())
		require.ErrorIs(t, <-done, redischannels.ErrClosed)
	})
	return seen
}

// stampUntil marks a message as due at a time, to the millisecond.
func stampUntil(msg *message.Message, at time.Time) {
	msg.Metadata.Set(delay.DelayedUntilKey, at.Format(time.RFC3339Nano))
}

// delayAll publishes messages one by one, each due at random within spread, and returns when each is
// due by the server's clock.
func delayAll(t *testing.T, client *redis.Client, p *redischannels.Publisher, topic string, n int, spread time.Duration) (due map[string]time.Time) {
	t.Helper()
	due = make(map[string]time.Time, n)
	began, server := time.Now(), serverTime(t, client).Truncate(time.Millisecond)
	var mu sync.Mutex
	var callers sync.WaitGroup
	for first := range 8 {
		callers.Go(func() {
			for i := first; i < n; i += 8 {
				msg := message.NewMessage(fmt.Sprint("m", i), []byte("payload"))
				at := server.Add((time.Since(began) + rand.N(spread)).Truncate(time.Millisecond))
				stampUntil(msg, at)
				if err := p.Publish(topic, msg); err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				due[msg.UUID] = at
				mu.Unlock()
			}
		})
	}
	callers.Wait()
	return due
}

// requireOnce waits until all are appended and checks that each was, once and not early. It returns
// the lateness of each.
func requireOnce(t *testing.T, client redis.UniversalClient, topic string, due map[string]time.Time, patience time.Duration) (late []time.Duration) {
	t.Helper()
	redistest.Eventually(t, patience, func() bool { return client.ZCard(t.Context(), delayKeys(topic)[1]).Val() == 0 }, "nothing is due any more")
	eventuallyNoDelays(t, client, topic)
	ids, uuids := pubEntries(t, client, topic)
	seen := map[string]bool{}
	for i, uuid := range uuids {
		require.False(t, seen[uuid], "%s was appended twice", uuid)
		seen[uuid] = true
		if at, ok := due[uuid]; ok {
			lateness := entryTime(t, ids[i]).Sub(at)
			require.GreaterOrEqual(t, lateness, time.Duration(0), "%s was early", uuid)
			late = append(late, lateness)
		}
	}
	require.Len(t, late, len(due))
	return late
}

// testMoversKilled has five processes move, of which one is killed every now and then.
func testMoversKilled(t *testing.T, n int, spread, between time.Duration) {
	server := redistest.Start(t)
	client := server.Client(t)
	topic := redistest.Key(t)
	p, err := redischannels.NewPublisher(redischannels.PublisherConfig{Client: server.Client(t), Marshaler: pubMarshaler{}}, nil)
	require.NoError(t, err)
	keepers := make([]*redistest.Child, 5)
	for i := range keepers {
		keepers[i] = startKeeper(t, server, topic)
	}
	for _, k := range keepers {
		k.WaitLine("live", 2*soon)
	}
	due := delayAll(t, client, p, topic, n, spread)
	require.NoError(t, p.Close()) // only the processes move from now on
	kills := 0
	for client.ZCard(t.Context(), delayKeys(topic)[1]).Val() > 0 {
		<-time.After(between)
		i := rand.IntN(len(keepers))
		keepers[i].Kill()
		kills++
		keepers[i] = startKeeper(t, server, topic)
	}
	late := requireOnce(t, client, topic, due, 2*soon)
	var most time.Duration
	for _, l := range late {
		most = max(most, l)
	}
	t.Logf("%d messages, %d kills, at most %s late", n, kills, most)
	require.Less(t, most, 3*time.Second)
}

func TestDelayed_MoversKilled(t *testing.T) {
	t.Parallel()
	testMoversKilled(t, 1500, 3*time.Second, 300*time.Millisecond)
}

func TestSoakDelayed_MoversKilled(t *testing.T) {
	if os.Getenv("SOAK") == "" {
		t.Skip("a part of make soak")
	}
	testMoversKilled(t, 100_000, 90*time.Second, 500*time.Millisecond)
}

// move matches a call of the mover's script, the only one that knows the dead letters.
func moveScript(topic string) redistest.Match {
	return redistest.And(redistest.Script(), redistest.Contains("{"+topic+"}:mover"), redistest.Contains("{"+topic+"}:dead"))
}

// Moved messages are no longer stored when the mover calls again.
func TestDelayed_LostRepliesOfTheMover(t *testing.T) {
	t.Parallel()
	proxy, client, direct := pubProxy(t)
	topic := redistest.Key(t)
	p := newTestPublisher(t, client)
	stop := make(chan struct{})
	var dropping sync.WaitGroup
	lost := 0
	moved := func(reply []byte) bool { return bytes.Contains(reply, []byte("leads")) }
	dropping.Go(func() {
		for {
			rule := proxy.DropReplyIf(1, moveScript(topic), moved)
			for rule.Count() == 0 {
				select {
				case <-stop:
					rule.Remove()
					return
				case <-time.After(5 * time.Millisecond):
				}
			}
			lost++
			<-time.After(50 * time.Millisecond)
		}
	})
	due := delayAll(t, direct, p, topic, 500, 2*time.Second)
	redistest.Eventually(t, 2*soon, func() bool { return direct.ZCard(t.Context(), delayKeys(topic)[1]).Val() == 0 }, "all are moved")
	close(stop)
	dropping.Wait()
	require.Greater(t, lost, 5)
	requireOnce(t, direct, topic, due, soon)
}

// A publish whose reply is lost is unknown, and moved once if it was stored.
func TestDelayed_LostReplyOfAPublish(t *testing.T) {
	t.Parallel()
	proxy, client, direct := pubProxy(t)
	topic := redistest.Key(t)
	p := newTestPublisher(t, client)
	require.NoError(t, p.Publish(topic, delayedFor(time.Millisecond, pubMessages("warm", 1)...)...))
	eventuallyNoDelays(t, direct, topic)
	proxy.DropReply(1, redistest.And(redistest.Script(), redistest.Contains("kept-0")))
	err := p.Publish(topic, delayedFor(200*time.Millisecond, pubMessages("kept-", 3)...)...)
	requireOutcomes(t, err, redischannels.OutcomeUnknown, 3)
	redistest.Eventually(t, soon, func() bool { return direct.XLen(t.Context(), topic).Val() == 4 }, "they are moved")
	proxy.DropRequest(1, redistest.And(redistest.Script(), redistest.Contains("lost-0")))
	err = p.Publish(topic, delayedFor(200*time.Millisecond, pubMessages("lost-", 3)...)...)
	requireOutcomes(t, err, redischannels.OutcomeUnknown, 3)
	eventuallyNoDelays(t, direct, topic)
	_, uuids := pubEntries(t, direct, topic)
	require.Equal(t, []string{"warm0", "kept-0", "kept-1", "kept-2"}, uuids)
}

// An entry that cannot be read would be read first forever.
func TestDelayed_CorruptEntryBlocksNothing(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	topic := redistest.Key(t)
	p := newTestPublisher(t, client, func(c *redischannels.PublisherConfig) { c.Marshaler = nil })
	require.NoError(t, p.Publish(topic, delayedFor(300*time.Millisecond, pubMessages("good", 1)...)...))
	good := delayed.AppendField(delayed.NewEntry(0, 0), "name", []byte("value"))
	many := delayed.NewEntry(0, 0)
	for range delayed.MaxFields + 1 {
		many = delayed.AppendField(many, "a", nil)
	}
	corrupt := map[string]string{
		"1-1": "", "1-2": "\x02" + string(good[1:]), "1-3": string(good[:len(good)-1]), "1-4": string(good) + "\x00\x00", "1-5": "\x01",
		"1-6": string(good) + "\x00\x00\x00\x00", "1-7": string(many), "1-8": string(good) + "\xff\xff\xff\xffx",
	}
	for id, entry := range corrupt {
		require.NoError(t, client.HSet(t.Context(), delayKeys(topic)[0], id, entry).Err())
		require.NoError(t, client.ZAdd(t.Context(), delayKeys(topic)[1], redis.Z{Member: id, Score: 1}).Err())
	}
	require.NoError(t, client.ZAdd(t.Context(), delayKeys(topic)[1], redis.Z{Member: "no ID", Score: 1}).Err()) // without an entry
	seen := newKeeper(t, client, topic)
	eventuallyNoDelays(t, client, topic)
	require.EqualValues(t, 1, client.XLen(t.Context(), topic).Val())
	found := map[string]redischannels.DeadLetter{}
	for letter, err := range newDeadLetters(t, client).List(t.Context(), topic, redischannels.DeadLetterQuery{}) {
		require.NoError(t, err)
		require.Empty(t, letter.Group)
		require.NotEmpty(t, letter.Reason)
		found[letter.EntryID] = letter
	}
	require.Len(t, found, len(corrupt)+1)
	for id, entry := range corrupt {
		require.Equal(t, []redischannels.Field{{Name: "_delayed", Value: []byte(entry)}}, found[id].Fields)
	}
	require.Empty(t, found["0-0"].Fields)
	redistest.Eventually(t, soon, func() bool { return len(seen.of(redischannels.EventDeadLettered)) == len(found) }, "an event for each")
	seen.none(t, redischannels.EventError)
}

// A message that cannot be appended stays stored, and is moved when it can be.
func TestDelayed_TargetOfAnotherType(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	topic := redistest.Key(t)
	p := newTestPublisher(t, client)
	require.NoError(t, p.Publish(topic, delayedFor(50*time.Millisecond, pubMessages("m", 3)...)...))
	require.NoError(t, client.Set(t.Context(), topic, "a string", 0).Err())
	seen := &events{t: t}
	handle := housekeeper.Open(client, eventObserver{seen})
	defer func() { require.NoError(t, handle.Close()) }()
	of, err := keys.Of(topic, nil, true)
	require.NoError(t, err)
	handle.Due(delayed.Target{Topic: of}, 50*time.Millisecond)
	failed := seen.wait(t, redischannels.EventError)
	require.ErrorContains(t, failed.Err, "WRONGTYPE")
	require.EqualValues(t, 3, client.HLen(t.Context(), delayKeys(topic)[0]).Val())
	require.Equal(t, "a string", client.Get(t.Context(), topic).Val())
	require.NoError(t, client.Del(t.Context(), topic).Err())
	eventuallyNoDelays(t, client, topic)
	require.EqualValues(t, 3, client.XLen(t.Context(), topic).Val())
	require.Len(t, seen.of(redischannels.EventError), 1)
	seen.wait(t, redischannels.EventReconnected)
}

// eventObserver records what a housekeeper reports.
type eventObserver struct{ seen *events }

func (o eventObserver) Replaced(_ keys.Topic, before, policy string) {
	o.seen.add(redischannels.Event{Kind: redischannels.EventError, Position: before + " -> " + policy})
}

func (o eventObserver) Pinned(_ keys.Topic, pin retention.Pin, length int64) {
	o.seen.add(redischannels.Event{Kind: redischannels.EventPinned, Group: pin.Group, Count: int(length), Position: string(pin.Kind)})
}

func (o eventObserver) DeadLetters(_ delayed.Target, letters []delayed.Letter) {
	for _, l := range letters {
		o.seen.add(redischannels.Event{Kind: redischannels.EventDeadLettered, EntryIDs: []string{l.ID}, Position: l.Reason})
	}
}

func (o eventObserver) Failed(_ housekeeper.Task, _ delayed.Target, err error) {
	o.seen.add(redischannels.Event{Kind: redischannels.EventError, Err: err})
}

func (o eventObserver) Recovered(housekeeper.Task, delayed.Target, time.Duration) {
	o.seen.add(redischannels.Event{Kind: redischannels.EventReconnected})
}

// The due set of a group has its own target, leader and dead letters.
func TestDelayed_ReturnStreamOfAGroup(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	ctx := t.Context()
	topic := redistest.Key(t)
	of, err := keys.Of(topic, nil, true)
	require.NoError(t, err)
	require.NoError(t, client.XGroupCreateMkStream(ctx, of.Return("g"), "g", "0").Err())
	require.NoError(t, client.Set(ctx, of.Mover(""), "the leader of the topic", 0).Err())
	entry := delayed.AppendField(delayed.NewEntry(0, 0), "name", []byte("value"))
	now := serverTime(t, client).UnixMilli()
	for _, group := range []string{"g", "gone", "{odd}:group"} {
		for n := range 150 {
			id := fmt.Sprintf("%s\x00%s\x00%d-%d", group, topic, 7+n, 0)
			require.NoError(t, client.HSet(ctx, of.Delayed(), id, entry).Err())
			require.NoError(t, client.ZAdd(ctx, of.Due(group), redis.Z{Member: id, Score: float64(now + 200)}).Err())
		}
	}
	seen := &events{t: t}
	handle := housekeeper.Open(client, eventObserver{seen})
	defer func() { require.NoError(t, handle.Close()) }()
	for _, group := range []string{"g", "gone", "{odd}:group"} {
		handle.Due(delayed.Target{Topic: of, Group: group}, 0)
	}
	redistest.Eventually(t, soon, func() bool {
		return client.Exists(ctx, of.Delayed(), of.Due("g"), of.Due("gone"), of.Due("{odd}:group")).Val() == 0
	}, "all is moved")
	require.EqualValues(t, 150, client.XLen(ctx, of.Return("g")).Val())
	first := client.XRangeN(ctx, of.Return("g"), "-", "+", 1).Val()[0]
	require.Equal(t, map[string]any{"name": "value"}, first.Values)
	require.False(t, entryTime(t, first.ID).Before(time.UnixMilli(now+200)))
	require.Zero(t, client.Exists(ctx, topic, of.Return("gone")).Val())
	letters := map[string]int{}
	for letter, err := range newDeadLetters(t, client).List(ctx, topic, redischannels.DeadLetterQuery{}) {
		require.NoError(t, err)
		require.Equal(t, []redischannels.Field{{Name: "name", Value: []byte("value")}}, letter.Fields)
		require.Contains(t, letter.Reason, "does not exist")
		require.True(t, strings.HasSuffix(letter.EntryID, "-0"))
		letters[letter.Group]++
	}
	require.Equal(t, map[string]int{"gone": 150, "{odd}:group": 150}, letters)
	require.Len(t, seen.of(redischannels.EventDeadLettered), 300)
}

// 1 MiB entries are moved one at a time; many small ones in pages.
func TestDelayed_PagesAreBounded(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client(t)
	topic := redistest.Key(t)
	p := newTestPublisher(t, client)
	msgs := pubMessages("m", 20)
	for _, msg := range msgs {
		msg.Payload = make([]byte, 1000<<10)
	}
	for _, msg := range delayedFor(2*time.Second, msgs...) {
		require.NoError(t, p.Publish(topic, msg))
	}
	require.NoError(t, p.Publish(topic, delayedFor(2*time.Millisecond, pubMessages("small", 350)...)...))
	redistest.ResetStats(t, client)
	eventuallyNoDelays(t, client, topic)
	_, uuids := pubEntries(t, client, topic)
	require.Len(t, uuids, 370)
	stats := redistest.CommandStats(t, client)
	require.GreaterOrEqual(t, stats["eval"]+stats["evalsha"], int64(20+4), "pages")
}

// A mover that has nothing to do for an hour must cost nothing.
func TestDelayed_IdleCostsNothing(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	hook := redistest.NewHook()
	client.AddHook(hook)
	topic := redistest.Key(t)
	p := newTestPublisher(t, client)
	require.NoError(t, p.Publish(topic, append(delayedFor(time.Hour, pubMessages("later", 1)...), delayedFor(30*time.Millisecond, pubMessages("m", 1)...)...)...))
	redistest.Eventually(t, soon, func() bool { return client.XLen(t.Context(), topic).Val() == 1 }, "what is due is moved")
	scripts := func() int { return hook.Count("evalsha") + hook.Count("eval") }
	<-time.After(quiet) // the last check of this page
	before := scripts()
	<-time.After(3 * quiet)
	require.Equal(t, before, scripts(), "nothing is due for an hour")
}

// A full server stores nothing new, whole or in part, and gets rid of what it has.
func TestDelayed_OutOfMemory(t *testing.T) {
	t.Parallel()
	client := redistest.Start(t).Client(t)
	ctx := t.Context()
	topic := redistest.Key(t)
	p := newTestPublisher(t, client)
	require.NoError(t, p.Publish(topic, delayedFor(300*time.Millisecond, pubMessages("m", 20)...)...))
	require.NoError(t, client.ConfigSet(ctx, "maxmemory", "1").Err())
	msgs := pubMessages("refused", 3)
	err := p.Publish(topic, append(delayedFor(time.Hour, msgs[:2]...), msgs[2])...)
	require.ErrorIs(t, err, redischannels.ErrOutOfMemory)
	requireOutcomes(t, err, redischannels.OutcomeNotAppended, 3)
	seen := newKeeper(t, client, topic)
	eventuallyNoDelays(t, client, topic) // what moves needs no memory
	_, uuids := pubEntries(t, client, topic)
	require.ElementsMatch(t, pubUUIDs(pubMessages("m", 20)), uuids)
	seen.none(t, redischannels.EventDeadLettered)
}

// The server's clock is ten minutes ahead of that of the process.
func TestDelayed_ByTheServersClock(t *testing.T) {
	t.Parallel()
	for name, offset := range map[string]time.Duration{"ahead": 10 * time.Minute, "behind": -10 * time.Minute} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client := redistest.Start(t, redistest.ClockOffset(offset)).Client(t)
			topic := redistest.Key(t)
			p := newTestPublisher(t, client)
			began := serverTime(t, client)
			require.NoError(t, p.Publish(topic, delayedFor(300*time.Millisecond, pubMessages("after", 1)...)...))
			due := delayAll(t, client, p, topic, 50, 500*time.Millisecond)
			due["after0"] = began.Truncate(time.Millisecond).Add(300 * time.Millisecond)
			requireOnce(t, client, topic, due, soon)
		})
	}
}

// While a slot moves, keys of one script are on two servers.
func TestDelayed_SlotMoves(t *testing.T) {
	t.Parallel()
	cluster := redistest.StartCluster(t, 3)
	topic := topicOn(t, cluster, 0)
	client := cluster.Client(t)
	p := newTestPublisher(t, cluster.Client(t))
	due := make(map[string]time.Time)
	for i, to := range []int{1, 2, 0} {
		msgs, now := pubMessages(fmt.Sprint("round", i, "-"), 300), time.Now().Truncate(time.Millisecond)
		for n, msg := range msgs {
			due[msg.UUID] = now.Add(time.Duration(n*5) * time.Millisecond)
			stampUntil(msg, due[msg.UUID])
		}
		require.NoError(t, p.Publish(topic, msgs...))
		cluster.MoveSlot(topic, to)
	}
	requireOnce(t, client, topic, due, 2*soon)
}

// No script blocks the server for long, also with the largest entries.
func TestSoakDelayed_NoScriptIsSlow(t *testing.T) {
	if os.Getenv("SOAK") == "" {
		t.Skip("a part of make soak")
	}
	server := redistest.Start(t)
	client := server.Client(t)
	topic := redistest.Key(t)
	require.NoError(t, client.ConfigSet(t.Context(), "slowlog-log-slower-than", "20000").Err())
	p := newTestPublisher(t, client)
	msgs := pubMessages("m", 100)
	for _, msg := range msgs {
		msg.Payload = make([]byte, 1<<20-1<<10)
	}
	for _, msg := range delayedFor(3*time.Second, msgs...) {
		require.NoError(t, p.Publish(topic, msg))
	}
	require.NoError(t, p.Publish(topic, delayedFor(time.Second, pubMessages("small", 500)...)...))
	s := newSchedules(t, client, topic)
	at := serverTime(t, client).Add(30 * time.Second)
	_, err := s.Put(t.Context(), schedule.Schedule{
		ID: "each minute", Cron: fmt.Sprint(at.Second(), " * * * * *"), Misfire: schedule.All, Message: message.NewMessage("", msgs[0].Payload[1<<10:]),
	})
	require.NoError(t, err)
	age(t, client, topic, "each minute", 24*time.Hour)
	runSchedules(t, s)
	redistest.Eventually(t, time.Minute, func() bool { return client.XLen(t.Context(), topic).Val() == 701 }, "all is appended")
	slow, err := client.SlowLogGet(t.Context(), 100).Result()
	require.NoError(t, err)
	for _, command := range slow {
		t.Errorf("%s took %s", command.Args[0], command.Duration)
	}
	stats, err := client.InfoMap(t.Context(), "commandstats").Result()
	require.NoError(t, err)
	t.Log(stats["Commandstats"]["cmdstat_evalsha"])
}
