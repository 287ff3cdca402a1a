package tests

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/delayed"
	"github.com/flaminco/redischannels/internal/redistest"
	"github.com/flaminco/redischannels/schedule"
)

func newSchedules(t *testing.T, client redis.UniversalClient, topic string, options ...func(*schedule.Config)) *schedule.Schedules {
	t.Helper()
	config := schedule.Config{Client: client, Topic: topic, Interval: 100 * time.Millisecond}
	for _, o := range options {
		o(&config)
	}
	s, err := schedule.New(config, nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

// runSchedules calls Run until the end of the test, or until stop is called.
func runSchedules(t *testing.T, s *schedule.Schedules) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		require.NoError(t, <-done)
	})
	t.Cleanup(stop)
	return stop
}

func tickMessage(payload string) *message.Message { return message.NewMessage("u", []byte(payload)) }

// madeTicks returns the messages of a topic that schedules have made, in their order, and when each was
// appended.
func madeTicks(t *testing.T, client redis.UniversalClient, topic string) (ticks, appended []time.Time) {
	t.Helper()
	entries, err := client.XRange(t.Context(), topic, "-", "+").Result()
	require.NoError(t, err)
	for _, e := range entries {
		var fields []redischannels.Field
		for name, value := range e.Values {
			fields = append(fields, redischannels.Field{Name: name, Value: []byte(value.(string))})
		}
		msg, err := redischannels.WatermillMarshaler{}.Unmarshal(redischannels.Entry{Fields: fields})
		require.NoError(t, err)
		_, tick, ok := schedule.FromMetadata(msg.Metadata)
		require.True(t, ok)
		ticks, appended = append(ticks, tick), append(appended, entryTime(t, e.ID))
	}
	return ticks, appended
}

func schedulesKey(topic string) string { return "{" + topic + "}:schedules" }

func TestSchedule_At(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	topic := redistest.Key(t)
	s := newSchedules(t, client, topic)
	at := serverTime(t, client).Add(200 * time.Millisecond)
	msg := tickMessage("due")
	msg.Metadata.Set("tenant", "a\xff")
	require.NoError(t, s.At(t.Context(), "once", at, msg))
	info, err := s.Get(t.Context(), "once")
	require.NoError(t, err)
	require.False(t, info.Done)
	require.Equal(t, at.Add(time.Millisecond-1).UnixMilli(), info.Next.UnixMilli())
	redistest.Eventually(t, soon, func() bool { return client.XLen(t.Context(), topic).Val() == 1 }, "it is appended")
	ticks, appended := madeTicks(t, client, topic)
	require.False(t, appended[0].Before(at.Truncate(time.Millisecond)))
	require.Equal(t, info.Next.UTC(), ticks[0].UTC())
	got := receive(t, newSub(t, client).subscribe(t, topic))
	require.Equal(t, "u", got.UUID)
	require.Equal(t, "a\xff", got.Metadata.Get("tenant"))
	got.Ack()

	// It is done: to put it again makes no other message, and Cancel is too late.
	changed, err := s.Put(t.Context(), schedule.Schedule{ID: "once", At: at, Message: msg})
	require.NoError(t, err)
	require.False(t, changed)
	inTime, err := s.Cancel(t.Context(), "once")
	require.NoError(t, err)
	require.False(t, inTime)
	info, err = s.Get(t.Context(), "once")
	require.NoError(t, err)
	require.True(t, info.Done)
	require.Zero(t, info.Next)
	require.Len(t, info.Runs, 1)
	require.Equal(t, appended[0], info.Runs[0].Appended)
	require.NotEmpty(t, info.Runs[0].EntryID)
	require.EqualValues(t, 1, client.XLen(t.Context(), topic).Val())
	// Run forgets it after a day.
	age(t, client, topic, "once", 25*time.Hour)
	runSchedules(t, s)
	redistest.Eventually(t, soon, func() bool { return client.Exists(t.Context(), schedulesKey(topic)).Val() == 0 }, "it is deleted")
}

// age puts a schedule back in time, as if no process had been there since.
func age(t *testing.T, client redis.UniversalClient, topic, id string, by time.Duration) {
	t.Helper()
	key := schedulesKey(topic)
	var token, kind, flag, grace string
	var tick int64
	_, err := fmt.Sscan(client.HGet(t.Context(), key, "s:"+id).Val(), &token, &kind, &flag, &tick, &grace)
	require.NoError(t, err)
	old := tick - by.Milliseconds()
	require.NoError(t, client.HSet(t.Context(), key, "s:"+id, fmt.Sprint(token, " ", kind, " ", flag, " ", old, " ", grace)).Err())
	require.NoError(t, client.ZAddXX(t.Context(), delayKeys(topic)[1], redis.Z{Member: "schedule:" + id, Score: float64(old)}).Err())
}

func TestSchedule_PutIsIdempotent(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	topic := redistest.Key(t)
	s := newSchedules(t, client, topic)
	daily := schedule.Schedule{ID: "daily", Cron: "0 9 * * *", Zone: "Europe/Berlin", Message: tickMessage("a")}
	put := func(want bool) {
		t.Helper()
		changed, err := s.Put(t.Context(), daily)
		require.NoError(t, err)
		require.Equal(t, want, changed)
	}
	put(true)
	put(false)
	require.NoError(t, s.Pause(t.Context(), "daily"))
	put(false)
	require.Zero(t, client.Exists(t.Context(), delayKeys(topic)...).Val())
	daily.Message = tickMessage("b")
	put(true)
	info, err := s.Get(t.Context(), "daily")
	require.NoError(t, err)
	require.True(t, info.Paused)
	require.Zero(t, info.Next)
	require.NoError(t, s.Resume(t.Context(), "daily"))
	info, err = s.Get(t.Context(), "daily")
	require.NoError(t, err)
	require.NoError(t, info.Err)
	require.False(t, info.Paused)
	require.Equal(t, 9, info.Next.In(berlin(t)).Hour())
	require.Equal(t, "b", string(info.Message.Payload))
	require.Equal(t, schedule.Once, info.Misfire)

	_, err = s.Put(t.Context(), schedule.Schedule{ID: "another", At: time.Now().Add(time.Hour), Message: tickMessage("c")})
	require.NoError(t, err)
	var ids []string
	for info, err := range s.List(t.Context()) {
		require.NoError(t, err)
		ids = append(ids, info.ID)
	}
	require.Equal(t, []string{"another", "daily"}, ids)
	for _, id := range ids {
		inTime, err := s.Cancel(t.Context(), id)
		require.NoError(t, err)
		require.True(t, inTime)
	}
	inTime, err := s.Cancel(t.Context(), "daily")
	require.NoError(t, err)
	require.False(t, inTime)
	require.ErrorIs(t, s.Pause(t.Context(), "daily"), schedule.ErrNotFound)
	require.Zero(t, client.Exists(t.Context(), append(delayKeys(topic), schedulesKey(topic))...).Val())
}

func berlin(t *testing.T) *time.Location {
	t.Helper()
	zone, err := time.LoadLocation("Europe/Berlin")
	require.NoError(t, err)
	return zone
}

func TestSchedule_RunNow(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	topic := redistest.Key(t)
	s := newSchedules(t, client, topic)
	_, err := s.Put(t.Context(), schedule.Schedule{ID: "daily", Cron: "@daily", Message: tickMessage("a")})
	require.NoError(t, err)
	before, err := s.Get(t.Context(), "daily")
	require.NoError(t, err)
	var ids []string
	for range 25 {
		id, err := s.RunNow(t.Context(), "daily")
		require.NoError(t, err)
		ids = append(ids, id)
	}
	entries, _ := pubEntries(t, client, topic)
	require.Equal(t, entries, ids)
	after, err := s.Get(t.Context(), "daily")
	require.NoError(t, err)
	require.Equal(t, before.Next, after.Next)
	require.Len(t, after.Runs, 20)
	require.Equal(t, ids[24], after.Runs[0].EntryID)

	require.NoError(t, s.At(t.Context(), "once", time.Now().Add(time.Hour), tickMessage("b")))
	_, err = s.RunNow(t.Context(), "once")
	require.NoError(t, err)
	once, err := s.Get(t.Context(), "once")
	require.NoError(t, err)
	require.True(t, once.Done)
	require.EqualValues(t, 26, client.XLen(t.Context(), topic).Val())
	_, err = s.RunNow(t.Context(), "no such")
	require.ErrorIs(t, err, schedule.ErrNotFound)
}

// scheduleChild is a process that runs the schedules of CHILD_TOPIC at CHILD_URL. It says "live".
var scheduleChild = redistest.ChildMain("schedule", func() {
	options, err := redis.ParseURL(os.Getenv("CHILD_URL"))
	if err == nil {
		var s *schedule.Schedules
		if s, err = schedule.New(schedule.Config{Client: redis.NewClient(options), Topic: os.Getenv("CHILD_TOPIC"), Interval: 500 * time.Millisecond}, nil); err == nil {
			fmt.Println("live")
			err = s.Run(context.Background())
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
})

// Five processes, one of which is killed about twice a second, and a server whose clock is ten minutes off:
// every second has one message, none is early, and none is missing.
func TestSchedule_OneMessagePerTick(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, redistest.ClockOffset(10*time.Minute))
	client, topic := server.Client(t), redistest.Key(t)
	address := url.URL{Scheme: "redis", Host: server.Options().Addr}
	start := func() *redistest.Child {
		return redistest.StartChild(t, scheduleChild, "CHILD_URL="+address.String(), "CHILD_TOPIC="+topic)
	}
	s := newSchedules(t, client, topic)
	_, err := s.Put(t.Context(), schedule.Schedule{ID: "each second", Cron: "* * * * * *", Message: tickMessage("a")})
	require.NoError(t, err)
	require.NoError(t, s.Close()) // only the processes are there
	children := make([]*redistest.Child, 5)
	for i := range children {
		children[i] = start()
	}
	for _, c := range children {
		c.WaitLine("live", 2*soon)
	}
	kills := 0
	for client.XLen(t.Context(), topic).Val() < 15 {
		<-time.After(rand.N(time.Second))
		i := rand.IntN(len(children))
		children[i].Kill()
		kills++
		children[i] = start()
	}
	for _, c := range children {
		c.Kill()
	}
	ticks, appended := madeTicks(t, client, topic)
	var late time.Duration
	for i, tick := range ticks {
		require.Equal(t, ticks[0].Add(time.Duration(i)*time.Second), tick, "tick %d of %d", i, len(ticks))
		require.False(t, appended[i].Before(tick), "early")
		late = max(late, appended[i].Sub(tick))
	}
	t.Logf("%d ticks, %d kills, at most %s late", len(ticks), kills, late)
}

// All processes were away for an hour, with the tick stored, or behind a tick that was over.
func TestSchedule_Misfire(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	for _, c := range []struct {
		misfire schedule.Misfire
		stored  bool
		want    int // of 58 missed ticks, the one of the last minute, and the stored one
		skipped bool
	}{
		{schedule.Skip, true, 1, true}, {schedule.Skip, false, 1, true},
		{schedule.Once, true, 1, false}, {schedule.Once, false, 2, false},
		{schedule.All, true, 60, false}, {schedule.All, false, 59, false},
	} {
		t.Run(fmt.Sprint(c.misfire, " stored ", c.stored), func(t *testing.T) {
			t.Parallel()
			topic := redistest.Key(t)
			s := newSchedules(t, client, topic)
			// The next tick is far enough not to come during the test.
			at := serverTime(t, client).Add(30 * time.Second)
			_, err := s.Put(t.Context(), schedule.Schedule{
				ID: "each minute", Cron: fmt.Sprint(at.Second(), " * * * * *"), Misfire: c.misfire, Message: tickMessage("a"),
			})
			require.NoError(t, err)
			age(t, client, topic, "each minute", time.Hour)
			if !c.stored {
				require.NoError(t, client.ZRem(t.Context(), delayKeys(topic)[1], "schedule:each minute").Err())
				require.NoError(t, client.HDel(t.Context(), delayKeys(topic)[0], "schedule:each minute").Err())
			}
			runSchedules(t, s)
			redistest.Eventually(t, soon, func() bool {
				info, err := s.Get(t.Context(), "each minute")
				require.NoError(t, err)
				return info.Next.After(serverTime(t, client))
			}, "the next tick is stored")
			ticks, _ := madeTicks(t, client, topic)
			require.Len(t, ticks, c.want)
			if c.stored && c.misfire != schedule.Skip {
				ticks = ticks[1:] // the stored one, whose message was made before
			}
			for i, tick := range ticks {
				require.Equal(t, ticks[0].Add(time.Duration(i)*time.Minute), tick)
			}
			info, err := s.Get(t.Context(), "each minute")
			require.NoError(t, err)
			skipped := false
			for _, run := range info.Runs {
				skipped = skipped || run.Skipped
			}
			require.Equal(t, c.skipped, skipped)
		})
	}
}

// A reply that is lost makes nothing twice.
func TestSchedule_LostReplies(t *testing.T) {
	t.Parallel()
	proxy, client, direct := pubProxy(t)
	topic := redistest.Key(t)
	s := newSchedules(t, client, topic)
	lose := func() *redistest.Rule {
		return proxy.DropReplyIf(2, redistest.And(redistest.Script(), redistest.Contains("{"+topic+"}:mover"), redistest.Contains("{"+topic+"}:schedules"), redistest.Contains("daily")),
			func(reply []byte) bool { return !bytes.Contains(reply, []byte("NOSCRIPT")) })
	}
	rule := lose()
	changed, err := s.Put(t.Context(), schedule.Schedule{ID: "daily", Cron: "@daily", Message: tickMessage("a")})
	require.NoError(t, err)
	require.True(t, changed)
	require.Positive(t, rule.Count())
	rule.Remove()
	rule = lose()
	id, err := s.RunNow(t.Context(), "daily")
	require.NoError(t, err)
	entries, _ := pubEntries(t, direct, topic)
	require.Equal(t, []string{id}, entries)
	require.Positive(t, rule.Count())
	rule.Remove()
	rule = lose()
	require.NoError(t, s.Pause(t.Context(), "daily"))
	require.NoError(t, s.Resume(t.Context(), "daily"))
	rule.Remove()
	rule = lose()
	inTime, err := s.Cancel(t.Context(), "daily")
	require.NoError(t, err)
	require.True(t, inTime)
	require.Positive(t, rule.Count())
	require.Zero(t, direct.Exists(t.Context(), append(delayKeys(topic), schedulesKey(topic))...).Val())
}

// A schedule that cannot be decoded blocks no other schedule, and is reported.
func TestSchedule_CorruptBlocksNothing(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	topic := redistest.Key(t)
	key := schedulesKey(topic)
	seen := &events{t: t}
	s := newSchedules(t, client, topic, func(c *schedule.Config) { c.OnEvent = seen.add })
	for _, id := range []string{"good", "bad", "worse", "worst"} {
		_, err := s.Put(t.Context(), schedule.Schedule{ID: id, Cron: "@every 1s", Message: tickMessage(id)})
		require.NoError(t, err)
	}
	require.NoError(t, client.HSet(t.Context(), key, "d:bad", "{", "s:worse", "x", "d:worst", "{}\n\x02", "s:", "", "s:a d", "b", "x", "").Err())
	require.NoError(t, client.HSet(t.Context(), delayKeys(topic)[0], "schedule:worst", "\x02").Err())
	runSchedules(t, s)
	redistest.Eventually(t, soon, func() bool {
		info, err := s.Get(t.Context(), "good")
		require.NoError(t, err)
		return len(info.Runs) >= 4
	}, "the good one continues")
	bad := 0
	for info, err := range s.List(t.Context()) {
		require.NoError(t, err)
		if info.ID != "good" {
			require.Error(t, info.Err)
			bad++
		}
		if info.ID == "worst" {
			require.True(t, info.Runs[0].Dead)
		}
	}
	require.Equal(t, 4, bad) // with "a d"
	seen.wait(t, redischannels.EventDeadLettered)
	redistest.Eventually(t, soon, func() bool { return len(seen.of(redischannels.EventError)) >= 3 }, "events of the others")
	// Put replaces it.
	changed, err := s.Put(t.Context(), schedule.Schedule{ID: "worse", Cron: "@daily", Message: tickMessage("mended")})
	require.NoError(t, err)
	require.True(t, changed)
	info, err := s.Get(t.Context(), "worse")
	require.NoError(t, err)
	require.NoError(t, info.Err)
}

// A key of another type in the place of the schedules is an error, and delayed messages are moved.
func TestSchedule_KeyOfAnotherType(t *testing.T) {
	t.Parallel()
	client := redistest.Shared(t).Client(t)
	topic := redistest.Key(t)
	require.NoError(t, client.Set(t.Context(), schedulesKey(topic), "text", 0).Err())
	s := newSchedules(t, client, topic)
	require.ErrorIs(t, s.At(t.Context(), "a", time.Now(), tickMessage("a")), redischannels.ErrWrongType)
	tick := delayed.AppendField(delayed.NewEntry(0, 0), "uuid", []byte("tick"))
	require.NoError(t, client.HSet(t.Context(), delayKeys(topic)[0], "schedule:a", tick).Err())
	require.NoError(t, client.ZAdd(t.Context(), delayKeys(topic)[1], redis.Z{Member: "schedule:a", Score: 1}).Err())
	p := newTestPublisher(t, client)
	require.NoError(t, p.Publish(topic, delayedFor(time.Millisecond, pubMessages("m", 1)...)...))
	eventuallyNoDelays(t, client, topic)
	require.EqualValues(t, 2, client.XLen(t.Context(), topic).Val())
}

func TestSchedule_Cluster(t *testing.T) {
	t.Parallel()
	cluster := redistest.StartCluster(t, 3)
	topic := topicOn(t, cluster, 0)
	client := cluster.Client(t)
	s := newSchedules(t, client, topic)
	runSchedules(t, s)
	_, err := s.Put(t.Context(), schedule.Schedule{ID: "each second", Cron: "* * * * * *", Message: tickMessage("a")})
	require.NoError(t, err)
	for _, to := range []int{1, 2, 0} {
		n := client.XLen(t.Context(), topic).Val()
		redistest.Eventually(t, soon, func() bool { return client.XLen(t.Context(), topic).Val() > n }, "ticks come")
		cluster.MoveSlot(topic, to)
	}
	n := client.XLen(t.Context(), topic).Val()
	redistest.Eventually(t, soon, func() bool { return client.XLen(t.Context(), topic).Val() > n+1 }, "ticks come")
	ticks, _ := madeTicks(t, client, topic)
	for i, tick := range ticks {
		require.Equal(t, ticks[0].Add(time.Duration(i)*time.Second), tick)
	}
}

// A full server refuses a schedule and keeps those that it has.
func TestSchedule_FullServer(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client(t)
	topic := redistest.Key(t)
	s := newSchedules(t, client, topic)
	require.NoError(t, s.At(t.Context(), "once", serverTime(t, client).Add(500*time.Millisecond), tickMessage("a")))
	require.NoError(t, client.ConfigSet(t.Context(), "maxmemory", "1").Err())
	_, err := s.Put(t.Context(), schedule.Schedule{ID: "refused", Cron: "@daily", Message: tickMessage("b")})
	require.ErrorIs(t, err, redischannels.ErrOutOfMemory)
	redistest.Eventually(t, soon, func() bool { return client.XLen(t.Context(), topic).Val() == 1 }, "what moves needs no memory")
	info, err := s.Get(t.Context(), "once")
	require.NoError(t, err)
	require.True(t, info.Done)
	_, err = s.Get(t.Context(), "refused")
	require.ErrorIs(t, err, schedule.ErrNotFound)
}
