package health

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/bridge"
	"github.com/flaminco/redischannels/internal/cached"
)

// Defaults of the configurations.
const (
	DefaultTimeout        = time.Second
	DefaultMaxAge         = time.Second
	DefaultBacklogMaxAge  = 5 * time.Second
	DefaultBacklogTimeout = 5 * time.Second
)

// Live replies 200. It is an http.HandlerFunc.
func Live(w http.ResponseWriter, _ *http.Request) {
	reply(w, http.StatusOK, map[string]bool{"live": true})
}

// Subscriptions is implemented by redischannels.Subscriber, PubSubSubscriber, Channel and Hub.
type Subscriptions interface {
	Stats() []redischannels.SubscriptionStats
}

// ReadyConfig configures [Ready]. The zero value is ready at once.
type ReadyConfig struct {
	// Client must reply to PING: that of the publishers, whose connections are then reachable. It is
	// never closed. Defaults to none: Redis is not asked.
	Client redis.UniversalClient

	// Subscriptions have the subscriptions of the process. Each must be live or paused. Defaults to
	// none.
	Subscriptions []Subscriptions

	// Want is the least number of subscriptions, which are listed from the end of Subscribe on, or
	// from the first use of a Reader. Defaults to none.
	Want int

	// Timeout bounds the time of a request, at least 1 ms. A request that Redis has not replied to by
	// then is not ready. Defaults to DefaultTimeout.
	Timeout time.Duration

	// MaxAge is for how long a reply of Redis is used, at least 1 ms. Defaults to DefaultMaxAge.
	MaxAge time.Duration
}

// Readiness is an http.Handler that replies 200 if the process is ready and 503 otherwise, with the
// problems as JSON. It is safe for concurrent use.
type Readiness struct {
	config ReadyConfig
	ping   *cached.Value[struct{}]
}

// Ready returns a handler, which [Readiness.Close] closes. It sends no commands to Redis. The error
// wraps [redischannels.ErrInvalidConfig].
func Ready(config ReadyConfig) (*Readiness, error) {
	var errs []error
	if config.Client != nil {
		errs = append(errs, invalid("ReadyConfig.Client", bridge.CheckClient(config.Client)))
	}
	if config.Want < 0 {
		errs = append(errs, invalid("ReadyConfig.Want", fmt.Errorf("must be at least 0, got %d", config.Want)))
	}
	for i, s := range config.Subscriptions {
		if s == nil {
			errs = append(errs, invalid(fmt.Sprintf("ReadyConfig.Subscriptions[%d]", i), errors.New("must not be nil")))
		}
	}
	errs = append(errs, checkDuration("ReadyConfig.Timeout", config.Timeout), checkDuration("ReadyConfig.MaxAge", config.MaxAge))
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	ping := func(ctx context.Context) (struct{}, error) { return struct{}{}, config.Client.Ping(ctx).Err() }
	return &Readiness{config: config, ping: cached.New(ping, cmp.Or(config.Timeout, DefaultTimeout), cmp.Or(config.MaxAge, DefaultMaxAge), redischannels.ErrClosed)}, nil
}

// Check returns nil if the process is ready, and otherwise an error that joins the problems. It waits
// for Redis until ctx ends, and at most for Timeout.
func (r *Readiness) Check(ctx context.Context) error { return errors.Join(r.problems(ctx)...) }

func (r *Readiness) problems(ctx context.Context) (problems []error) {
	n := 0
	for _, of := range r.config.Subscriptions {
		for _, s := range of.Stats() {
			if s.State != redischannels.StateLive && s.State != redischannels.StatePaused {
				problems = append(problems, fmt.Errorf("the subscription of %q is %s", s.Topic, s.State))
			}
			n++
		}
	}
	if n < r.config.Want {
		problems = append(problems, fmt.Errorf("%d of %d subscriptions", n, r.config.Want))
	}
	if r.config.Client != nil {
		if _, err := r.ping.Get(ctx); err != nil {
			problems = append(problems, fmt.Errorf("redis: %w", err))
		}
	}
	return problems
}

// ServeHTTP implements http.Handler.
func (r *Readiness) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	answer := struct {
		Ready    bool     `json:"ready"`
		Problems []string `json:"problems,omitempty"`
	}{Ready: true}
	status := http.StatusOK
	for _, problem := range r.problems(request.Context()) {
		answer.Ready, status = false, http.StatusServiceUnavailable
		answer.Problems = append(answer.Problems, problem.Error())
	}
	reply(w, status, answer)
}

// Close waits for a PING that has no reply yet. Later requests are not ready.
func (r *Readiness) Close() error { return r.ping.Close() }

func reply(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // the client may have gone
}

func invalid(field string, problem error) error {
	if problem == nil {
		return nil
	}
	return fmt.Errorf("redischannels/health: %s: %w: %w", field, redischannels.ErrInvalidConfig, problem)
}

func checkDuration(field string, d time.Duration) error {
	if d != 0 && d < time.Millisecond {
		return invalid(field, fmt.Errorf("must be at least 1ms, or 0 for the default, got %v", d))
	}
	return nil
}
