package main

import (
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/time/rate"
)

// limiter gives each of many users, or addresses, a bucket of its own. It remembers the ones that
// were used last and forgets the others, so its memory has a bound.
type limiter struct {
	every   rate.Limit
	burst   int
	buckets *lru.Cache[string, *rate.Limiter]
}

// newLimiter allows burst at once and every per second in the long run.
func newLimiter(every rate.Limit, burst, remembered int) (*limiter, error) {
	buckets, err := lru.New[string, *rate.Limiter](remembered)
	return &limiter{every, burst, buckets}, err
}

// allow returns 0 if the one whom the key names may act now, or how long that takes to be so.
func (l *limiter) allow(key string) time.Duration {
	bucket := rate.NewLimiter(l.every, l.burst)
	if previous, ok, _ := l.buckets.PeekOrAdd(key, bucket); ok {
		bucket = previous
		l.buckets.Get(key) // makes it the one used last
	}
	if bucket.Allow() {
		return 0
	}
	return time.Duration(float64(time.Second) / float64(l.every))
}

// counter counts what each of many users has at a time, up to a bound.
type counter struct {
	most int

	mu  sync.Mutex
	has map[string]int
}

func newCounter(most int) *counter { return &counter{most: most, has: make(map[string]int)} }

// enter returns false if the user has as many as it may; leave follows otherwise.
func (c *counter) enter(user string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.has[user] == c.most {
		return false
	}
	c.has[user]++
	return true
}

func (c *counter) leave(user string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.has[user]--; c.has[user] == 0 {
		delete(c.has, user)
	}
}
