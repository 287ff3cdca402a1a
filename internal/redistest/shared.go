package redistest

import (
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"log"
	"log/slog"
	"net/url"
	"os"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"
)

// shared is the server of this test process, made by the first call of Shared.
var shared struct {
	mu      sync.Mutex
	started bool
	proc    *process      // nil when REDIS_ADDR names the server
	opts    redis.Options // of the default user
	err     error
}

// Shared returns the server that all tests of the process use together: the one that
// REDIS_ADDR names, or a process of the kit that the first call starts and [StopShared] ends.
// A test keeps to the keys that [Key] gives it and never flushes, stops or reconfigures this
// server; methods that would do so fail the test.
func Shared(tb testing.TB) *Server {
	tb.Helper()
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if !shared.started {
		shared.started = true
		shared.proc, shared.opts, shared.err = startShared()
	}
	if shared.err != nil {
		unavailable(tb, shared.err)
	}
	return &Server{tb: tb, opts: shared.opts, proc: shared.proc, shared: true}
}

func startShared() (*process, redis.Options, error) {
	if addr := os.Getenv("REDIS_ADDR"); addr != "" {
		opts := &redis.Options{Addr: addr, DB: database()}
		if strings.Contains(addr, "://") {
			var err error
			if opts, err = redis.ParseURL(addr); err != nil {
				return nil, redis.Options{}, fmt.Errorf("REDIS_ADDR: %w", withoutURL(err))
			}
		}
		return nil, *opts, pingShared(opts)
	}
	proc, err := launch(config{})
	if err != nil {
		return nil, redis.Options{}, err
	}
	return proc, *proc.options(), nil
}

// withoutURL takes the URL out of the error, since it may hold a password.
func withoutURL(err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		return u.Err
	}
	return err
}

func pingShared(opts *redis.Options) error {
	copied := *opts
	client := redis.NewClient(&copied)
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	if err := client.Ping(ctx).Err(); err != nil {
		return fmt.Errorf("the server that REDIS_ADDR names does not answer: %w", err)
	}
	return nil
}

// StopShared ends the shared server, if one was started, or removes the keys of this process
// from the one that REDIS_ADDR names. A later [Shared] starts another one. [Main] calls it.
func StopShared() {
	shared.mu.Lock()
	defer shared.mu.Unlock()
	switch {
	case shared.proc != nil:
		shared.proc.destroy()
	case shared.started && shared.err == nil:
		sweep(shared.opts)
	}
	shared.started, shared.proc, shared.err = false, nil, nil
}

// sweep removes the keys whose names contain the mark of this process, so also the
// "{topic}:dead" of a topic. It is best effort: the keys are unique anyway.
func sweep(opts redis.Options) {
	client := redis.NewClient(&opts)
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	keys := client.Scan(ctx, 0, "*"+processMark+"*", 1000).Iterator()
	for keys.Next(ctx) {
		if client.Unlink(ctx, keys.Val()).Err() != nil {
			return
		}
	}
}

// Main runs the tests of a package, stops the shared server, fails the run when a goroutine
// is left, and exits. It belongs into TestMain, which in the simplest case is only this call.
// In a process that [StartChild] has started it runs the child's function instead.
//
// A goroutine that a test left behind is looked for only when all tests passed; options are
// those of goleak.
//
// Twice as many parallel tests run at once as there are processors, unless -parallel says
// otherwise: most tests here only wait for a server.
func Main(m *testing.M, options ...goleak.Option) {
	silence()
	runChild()
	waitInParallel()
	code := m.Run()
	StopShared()
	if code == 0 {
		// go-redis dials for up to a second more after a client was closed.
		var err error
		if !poll(2*time.Second, func() bool { err = goleak.Find(options...); return err == nil }) {
			fmt.Fprintf(os.Stderr, "redistest: goroutines are left after the tests: %v\n", err)
			code = 1
		}
	}
	os.Exit(code)
}

// waitInParallel sets how many parallel tests run at once, unless the flag is given or bounds
// something else: the workers of a fuzz test.
func waitInParallel() {
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" || f.Name == "test.fuzz" })
	if !given {
		_ = flag.Set("test.parallel", strconv.Itoa(2*runtime.GOMAXPROCS(0)))
	}
}

// silence discards what is logged where a test gives no logger: the tests look at events.
func silence() {
	slog.SetDefault(slog.New(slog.DiscardHandler))
	log.SetOutput(os.Stderr) // SetDefault has given it to slog
	log.SetFlags(log.LstdFlags)
}

var (
	// processMark distinguishes the keys of this process from those of others on the same server.
	processMark = "rt" + strings.ToLower(rand.Text()[:10])
	keyNumber   atomic.Int64
	notInKeys   = regexp.MustCompile(`[^A-Za-z0-9_.-]+`)
)

// Key returns a name for a key, topic or channel that no other caller gets: every call gives
// another one. It contains the name of the test and the suffixes, and no hash tag.
func Key(tb testing.TB, suffix ...string) string {
	name := notInKeys.ReplaceAllString(tb.Name(), "_")
	parts := append([]string{name, fmt.Sprintf("%s-%d", processMark, keyNumber.Add(1))}, suffix...)
	return strings.Join(parts, ":")
}
