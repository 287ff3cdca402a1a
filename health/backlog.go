package health

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/inspect"
	"github.com/flaminco/redischannels/internal/cached"
)

// Group names a consumer group of a topic.
type Group struct{ Topic, Group string }

// BacklogConfig configures [NewBacklog]. Inspector and Groups are required.
type BacklogConfig struct {
	// Inspector reads from Redis.
	Inspector *inspect.Inspector

	// Groups are the consumer groups, at least one.
	Groups []Group

	// Timeout bounds the time of a request, at least 1 ms. Defaults to DefaultBacklogTimeout.
	Timeout time.Duration

	// MaxAge is for how long a result is used, at least 1 ms. Defaults to DefaultBacklogMaxAge.
	MaxAge time.Duration
}

// Backlog is an http.Handler that returns the work that waits for consumer groups, such as
//
//	{"backlog":12,"groups":[{"topic":"orders","group":"billing","lag":9,"pending":2,"due":1,"backlog":12}]}
//
// where KEDA's metrics-api scaler reads valueLocation backlog, or groups.0.backlog. It replies 503 if
// Redis does not answer in time. One read is in progress at a time. It is safe for concurrent use.
type Backlog struct {
	groups *cached.Value[[]inspect.Backlog]
}

// NewBacklog returns a handler, which [Backlog.Close] closes. It sends no commands to Redis. The error
// wraps [redischannels.ErrInvalidConfig].
func NewBacklog(config BacklogConfig) (*Backlog, error) {
	var errs []error
	if config.Inspector == nil {
		errs = append(errs, invalid("BacklogConfig.Inspector", errors.New("must not be nil")))
	}
	if len(config.Groups) == 0 {
		errs = append(errs, invalid("BacklogConfig.Groups", errors.New("must not be empty")))
	}
	for i, g := range config.Groups {
		if g.Topic == "" || g.Group == "" {
			errs = append(errs, invalid(fmt.Sprintf("BacklogConfig.Groups[%d]", i), fmt.Errorf("needs a topic and a group, got %q and %q", g.Topic, g.Group)))
		}
	}
	errs = append(errs, checkDuration("BacklogConfig.Timeout", config.Timeout), checkDuration("BacklogConfig.MaxAge", config.MaxAge))
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	read := func(ctx context.Context) ([]inspect.Backlog, error) {
		groups := make([]inspect.Backlog, len(config.Groups))
		for i, g := range config.Groups {
			var err error
			if groups[i], err = config.Inspector.Backlog(ctx, g.Topic, g.Group); err != nil {
				return nil, err
			}
		}
		return groups, nil
	}
	return &Backlog{cached.New(read, cmp.Or(config.Timeout, DefaultBacklogTimeout), cmp.Or(config.MaxAge, DefaultBacklogMaxAge), redischannels.ErrClosed)}, nil
}

// ServeHTTP implements http.Handler.
func (b *Backlog) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	groups, err := b.groups.Get(request.Context())
	if err != nil {
		reply(w, http.StatusServiceUnavailable, map[string]string{"error": err.Error()})
		return
	}
	answer := struct {
		Backlog int64             `json:"backlog"`
		Groups  []inspect.Backlog `json:"groups"`
	}{Groups: groups}
	for _, g := range groups {
		answer.Backlog += g.Backlog
	}
	reply(w, http.StatusOK, answer)
}

// Close waits for the read in progress. Later requests fail.
func (b *Backlog) Close() error { return b.groups.Close() }
