package redistest

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/stretchr/testify/require"
)

func TestCountersOfTheServer(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	s := Start(t)
	client, reader := s.Client(t), s.Client(t)
	require.Zero(t, BlockedClients(t, client))
	before := Connections(t, client)

	ResetStats(t, client)
	var wg sync.WaitGroup
	wg.Go(func() { reader.BLPop(ctx, time.Minute, "list") })
	Eventually(t, soon, func() bool { return BlockedClients(t, client) == 1 }, "the read blocks")
	require.Equal(t, before+1, Connections(t, client))
	require.NoError(t, client.RPush(ctx, "list", strings.Repeat("x", 1000)).Err())
	wg.Wait()
	require.Zero(t, BlockedClients(t, client))
	require.Greater(t, OutputBytes(t, client), 1000)

	stats := CommandStats(t, client)
	require.EqualValues(t, 1, stats["rpush"])
	require.EqualValues(t, 1, stats["blpop"])
	require.NotContains(t, stats, "xadd")
	ResetStats(t, client)
	require.NotContains(t, CommandStats(t, client), "rpush")
}

func TestGoroutinesAreCountedByTheirStack(t *testing.T) {
	t.Parallel()
	count := Goroutines(t, "redistest.TestGoroutinesAreCountedByTheirStack")
	require.Zero(t, count.Now(), "lines of the kit are not checked")

	var wg sync.WaitGroup
	wg.Add(1)
	defer wg.Done()
	go wg.Wait() // of before
	count = Goroutines(t, "runtime_Semacquire", "sync.(*WaitGroup)")
	var counted sync.WaitGroup
	counted.Add(1)
	for range 2 {
		go counted.Wait()
	}
	indirect := make(chan struct{})
	go func() {
		go counted.Wait()
		close(indirect)
	}()
	<-indirect
	other := Goroutines(t, "runtime_Semacquire", "sync.(*WaitGroup)")
	Eventually(t, soon, func() bool { return count.Now() == 3 }, "three wait")
	require.Zero(t, other.Now(), "each counts what was started after it was made, and before the next")
	counted.Done()
	count.Wait(soon)
}

func TestEventuallyAndNever(t *testing.T) {
	t.Parallel()
	asked := 0
	Eventually(t, soon, func() bool { asked++; return asked == 3 }, "three")
	require.Equal(t, 3, asked)
	Never(t, 20*time.Millisecond, func() bool { return false }, "false")

	var failed recordedFailure
	run(&failed, func() { Eventually(&failed, time.Millisecond, func() bool { return false }, "%d of %d", 1, 2) })
	require.Equal(t, "not within 1ms: 1 of 2", failed.message)
	run(&failed, func() { Never(&failed, time.Minute, func() bool { return true }, "ends at once") })
	require.Equal(t, "must not happen: ends at once", failed.message)
}

// recordedFailure is a test that notes how it was ended in place of failing.
type recordedFailure struct {
	testing.TB
	message string
	skipped bool
}

func (r *recordedFailure) Helper() {}

func (r *recordedFailure) Fatalf(format string, args ...any) {
	r.message = fmt.Sprintf(format, args...)
	panic(r)
}

func (r *recordedFailure) Skipf(format string, args ...any) {
	r.skipped = true
	r.Fatalf(format, args...)
}

func (r *recordedFailure) Fatal(args ...any) { r.Fatalf("%s", fmt.Sprint(args...)) }

// run returns when fn does or when it ends the test.
func run(r *recordedFailure, fn func()) {
	*r = recordedFailure{}
	defer func() {
		if e := recover(); e != nil && e != any(r) {
			panic(e)
		}
	}()
	fn()
}

// Not parallel: it changes the environment.
func TestMissingServerSkipsOrFails(t *testing.T) {
	t.Setenv("PATH", "")
	t.Setenv("REDIS_SERVER", "")
	t.Setenv("REDIS_ADDR", "")
	for _, require1 := range []bool{false, true} {
		t.Setenv("REQUIRE_REDIS", map[bool]string{true: "1"}[require1])
		var got recordedFailure
		run(&got, func() { Start(&got) })
		require.Equal(t, !require1, got.skipped)
		for _, word := range []string{"apt-get install redis-server", "brew install", "REDIS_SERVER", "REDIS_ADDR"} {
			require.Contains(t, got.message, word)
		}
	}
	t.Setenv("REDIS_SERVER", "/no/such/file")
	var got recordedFailure
	run(&got, func() { Start(&got) })
	require.False(t, got.skipped, "a server that is named must exist")
}

// Not parallel: it changes the environment and the shared server.
func TestSharedUsesTheServerThatTheEnvironmentNames(t *testing.T) {
	StopShared()
	t.Cleanup(StopShared)
	own := Start(t, Password("marker-secret"))
	client := own.Client(t)
	ctx := testContext(t)
	t.Setenv("REDIS_ADDR", "redis://:marker-secret@"+own.Addr()+"/3")
	s := Shared(t)
	require.Equal(t, own.Addr(), s.Addr())
	require.Equal(t, 3, s.Options().DB)
	mine, shared := Key(t), own.Client(t, DB(3))
	require.NoError(t, s.Client(t).Set(ctx, mine, "1", 0).Err())
	require.NoError(t, shared.Set(ctx, "{"+mine+"}:dead", "1", 0).Err())
	require.NoError(t, shared.Set(ctx, "of another test", "1", 0).Err())

	var got recordedFailure
	s.tb = &got
	run(&got, s.Stop)
	require.Contains(t, got.message, "shared")

	StopShared()
	require.Equal(t, []string{"of another test"}, shared.Keys(ctx, "*").Val())
	require.NoError(t, client.Ping(ctx).Err())

	t.Setenv("REDIS_ADDR", "redis://:marker-secret@[bad")
	run(&got, func() { Shared(&got) })
	require.Contains(t, got.message, "REDIS_ADDR")
	require.NotContains(t, got.message, "marker-secret")
}

func TestRecordingLogger(t *testing.T) {
	t.Parallel()
	log := NewRecordingLogger()
	with := log.With(watermill.LogFields{"topic": "t"}).With(watermill.LogFields{"group": "g"})
	with.Error("failed", context.Canceled, watermill.LogFields{"entry_id": "1-0"})
	log.Info("info", nil)
	log.Debug("debug", nil)
	log.Trace("trace", nil)
	require.Equal(t, []string{
		`error: failed err="context canceled" entry_id=1-0 group=g topic=t`,
		"info: info", "debug: debug", "trace: trace",
	}, log.Lines())
	require.Len(t, log.Entries("info", "debug"), 2)
	require.ErrorIs(t, log.Entries("error")[0].Err, context.Canceled)
	require.True(t, log.Contains("entry_id=1-0"))
	require.False(t, log.Contains("secret"))
}

var echoChild = ChildMain("echo", func() {
	fmt.Println("greeting " + os.Getenv("GREETING"))
	fmt.Fprintln(os.Stderr, "on standard error")
	var word string
	_, _ = fmt.Scanln(&word)
	fmt.Println("word " + word)
	if word == "fail" {
		os.Exit(3)
	}
})

func TestChildRunsAFunctionOfTheTestBinary(t *testing.T) {
	t.Parallel()
	child := StartChild(t, echoChild, "GREETING=hello")
	require.Equal(t, "hello", child.WaitLine("greeting ", soon))
	_, err := fmt.Fprintln(child.Stdin(), "fail")
	require.NoError(t, err)
	require.Equal(t, "fail", child.WaitLine("word ", soon))
	require.ErrorContains(t, child.Wait(soon), "exit status 3")
	_, open := <-child.Lines()
	require.False(t, open)
}

func TestChildIsFrozenAndKilled(t *testing.T) {
	t.Parallel()
	child := StartChild(t, echoChild)
	child.WaitLine("greeting ", soon)
	child.Pause()
	_, err := fmt.Fprintln(child.Stdin(), "go")
	require.NoError(t, err)
	select {
	case line := <-child.Lines():
		t.Fatalf("a frozen child says %q", line)
	case <-time.After(50 * time.Millisecond):
	}
	child.Resume()
	require.Equal(t, "go", child.WaitLine("word ", soon))
	require.NoError(t, child.Wait(soon))

	child = StartChild(t, echoChild)
	child.WaitLine("greeting ", soon)
	child.Kill()
	child.Kill() // does nothing
	require.ErrorContains(t, child.Wait(soon), "killed")
}
