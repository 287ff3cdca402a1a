package redistest

import (
	"fmt"
	"testing"
	"time"
)

// pollInterval is how often the kit checks whether something has happened.
const pollInterval = 5 * time.Millisecond

// Eventually returns as soon as condition is true, which it asks for every 5 ms, and fails
// the test when that takes longer than timeout. The message is a format with its arguments.
// condition runs in the calling goroutine, so it may use require.
func Eventually(tb testing.TB, timeout time.Duration, condition func() bool, message string, args ...any) {
	tb.Helper()
	if !poll(timeout, condition) {
		tb.Fatalf("not within %s: %s", timeout, fmt.Sprintf(message, args...))
	}
}

// Never fails the test when condition becomes true within the duration d. A test that passes
// takes that long, so d is short and Never rare.
func Never(tb testing.TB, d time.Duration, condition func() bool, message string, args ...any) {
	tb.Helper()
	if poll(d, condition) {
		tb.Fatalf("must not happen: %s", fmt.Sprintf(message, args...))
	}
}

// poll reports whether condition became true in time. It asks at least once, and once more
// at the end.
func poll(timeout time.Duration, condition func() bool) bool {
	deadline := time.NewTimer(timeout)
	defer deadline.Stop()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		if condition() {
			return true
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			return condition()
		}
	}
}
