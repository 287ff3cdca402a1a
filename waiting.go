package redischannels

import (
	"math/rand/v2"
	"time"
)

// retryDelay is the back-off of what is tried again in the background.
func retryDelay(attempt int) time.Duration {
	return Backoff{Min: 50 * time.Millisecond, Max: time.Second, Factor: 2, Jitter: 0.2}.delay(attempt, rand.Float64())
}

// pause waits for d or until stop is closed; it reports false when stopped.
func pause(stop <-chan struct{}, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-stop:
		return false
	}
}
