package redistest

import (
	"fmt"
	"os"
	"runtime"
	"runtime/pprof"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// GoroutineCount counts goroutines of one test.
type GoroutineCount struct {
	tb    testing.TB
	label string // of the goroutines that it counts
	match []string
}

var (
	goroutineLabels atomic.Int64
	showLabels      = sync.OnceFunc(func() {
		// Stacks show the labels of goroutines with it. The runtime follows the variable.
		settings := strings.Trim(os.Getenv("GODEBUG")+",tracebacklabels=1", ",")
		if err := os.Setenv("GODEBUG", settings); err != nil {
			panic("redistest: GODEBUG: " + err.Error())
		}
	})
)

// Goroutines counts the goroutines that the test starts from now on, directly or through
// others, and whose stack, the line "created by" included, contains one of the words. Without
// words they are the goroutines of this module except its tests, this kit and the examples.
// The test may run in parallel: a label, which a goroutine inherits from the one that starts
// it, distinguishes them from those of other tests. It must be called by the goroutine of the test.
// A goroutine that a timer starts (time.AfterFunc) has no label; [Main] finds it in the end.
func Goroutines(tb testing.TB, words ...string) *GoroutineCount {
	showLabels()
	label := fmt.Sprintf("redistest-goroutines-%d.", goroutineLabels.Add(1))
	pprof.SetGoroutineLabels(pprof.WithLabels(tb.Context(), pprof.Labels("test", label)))
	g := &GoroutineCount{tb: tb, label: label, match: words}
	if len(words) == 0 {
		g.match = []string{
			"github.com/flaminco/redischannels.",
			"github.com/flaminco/redischannels/internal/",
			"github.com/flaminco/redischannels/sse.",
			"github.com/flaminco/redischannels/compat.",
		}
	}
	return g
}

// Now is the number of such goroutines at this moment.
func (g *GoroutineCount) Now() int { return len(g.stacks()) }

// Wait returns when no such goroutine is left, and fails the test with their stacks when that
// takes longer than timeout.
func (g *GoroutineCount) Wait(timeout time.Duration) {
	g.tb.Helper()
	if !poll(timeout, func() bool { return g.Now() == 0 }) {
		stacks := g.stacks()
		g.tb.Fatalf("redistest: %d goroutines %s after the end:\n\n%s", len(stacks), timeout, strings.Join(stacks, "\n\n"))
	}
}

// stacks returns the stack of each goroutine that g counts.
func (g *GoroutineCount) stacks() []string {
	buf := make([]byte, 1<<20)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) {
			buf = buf[:n]
			break
		}
		buf = make([]byte, 2*len(buf))
	}
	var found []string
	for stack := range strings.SplitSeq(string(buf), "\n\n") {
		first, _, _ := strings.Cut(stack, "\n")
		if !strings.Contains(first, g.label) {
			continue
		}
		// A goroutine of a test is in the library while it calls it; it is not the library's.
		if strings.Contains(stack, "testing.tRunner(") || strings.Contains(stack, "testing.(*M).Run(") {
			continue
		}
		for line := range strings.Lines(stack) {
			if !strings.Contains(line, "/internal/redistest") && containsAny(line, g.match) {
				found = append(found, stack)
				break
			}
		}
	}
	return found
}

func containsAny(s string, words []string) bool {
	for _, w := range words {
		if strings.Contains(s, w) {
			return true
		}
	}
	return false
}
