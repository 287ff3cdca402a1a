// Package backoff implements the one rule by which the time between two attempts grows, and the one
// wait that its callers need.
package backoff

import (
	"math"
	"math/rand/v2"
	"time"
)

// Redis is the back-off of what talks to Redis in the background.
var Redis = Backoff{Min: 50 * time.Millisecond, Max: time.Second, Factor: 2, Jitter: 0.2}

// Backoff is a growing delay: Min, Min*Factor, ... up to Max, each shifted at random by up to
// the share Jitter of it, below 0 none.
type Backoff struct {
	Min    time.Duration
	Max    time.Duration // no delay is longer
	Factor float64       // 1 or more
	Jitter float64       // at most 1
}

// After returns the delay after attempt n, counted from 1.
func (b Backoff) After(n int) time.Duration { return b.at(n, rand.Float64()) }

// at is After with a number from 0 to 1 for the jitter. It takes as long for any n: delivery
// counts are what others have written to Redis.
func (b Backoff) at(n int, random float64) time.Duration {
	d := min(float64(b.Min)*math.Pow(b.Factor, float64(max(n, 1)-1)), float64(b.Max))
	d += d * max(0, b.Jitter) * (2*random - 1)
	return min(max(time.Duration(d), 0), b.Max)
}

// Wait waits for d, or until stop is closed; then it reports false.
func Wait(stop <-chan struct{}, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-stop:
		return false
	}
}
