package inspect

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/bridge"
	"github.com/flaminco/redischannels/internal/redisconn"
)

// Severity says how urgent a [Finding] is.
type Severity string

const (
	// SeverityCritical: messages are lost or cannot be handled, now or at the next fault.
	SeverityCritical Severity = "critical"
	// SeverityWarning: something is likely not as it was meant.
	SeverityWarning Severity = "warning"
	// SeverityInfo: a fact that matters for some needs.
	SeverityInfo Severity = "info"
)

// severities are all of them, the most urgent first.
var severities = []Severity{SeverityCritical, SeverityWarning, SeverityInfo}

// Finding is one result of [Inspector.Doctor].
type Finding struct {
	Check    string   `json:"check"` // a stable name, such as "eviction"
	Severity Severity `json:"severity"`
	Node     string   `json:"node,omitempty"` // address of the server; empty if it is about a topic
	Topic    string   `json:"topic,omitempty"`
	Group    string   `json:"group,omitempty"`
	Problem  string   `json:"problem"` // one sentence, with the values that were seen
	Action   string   `json:"action"`  // what an operator can do about it
}

// skewLimit is a difference of clocks that matters: delays and retention count by the clock of the server.
const skewLimit = 5 * time.Second

// sortFindings puts the most urgent first.
func sortFindings(findings []Finding) {
	slices.SortStableFunc(findings, func(a, b Finding) int {
		if a.Severity != b.Severity {
			return slices.Index(severities, a.Severity) - slices.Index(severities, b.Severity)
		}
		return strings.Compare(a.Node+"\x00"+a.Topic+"\x00"+a.Group, b.Node+"\x00"+b.Topic+"\x00"+b.Group)
	})
}

// DoctorQuery narrows down which topics [Inspector.Doctor] checks. The zero value asks for all, up to the limit.
type DoctorQuery struct {
	Match string // glob-style pattern of topics, as that of SCAN; empty matches all
	Limit int    // greatest number of topics and groups together, 0 for DefaultDoctorLimit
}

// DefaultDoctorLimit is how many topics and groups the doctor checks at most where its query has no Limit.
const DefaultDoctorLimit = 1000

// Doctor looks for settings and states that lose messages, delay them, or fill the memory of Redis: in every
// server of the client, in a cluster every master, and in topics and their groups. It changes nothing. No finding
// means that no check has found anything; a check that the Redis user is not permitted to run is a finding itself, and
// so is a limit that was reached. The most urgent findings come first.
//
// The error is that of a server that cannot be reached, or wraps [redischannels.ErrInvalidArgument].
// (INFO, TIME, EVAL; as Topics, Groups, Retained and Permissions)
func (i *Inspector) Doctor(ctx context.Context, query DoctorQuery) ([]Finding, error) {
	limit, err := checkLimit("DoctorQuery.Limit", query.Limit, DefaultDoctorLimit)
	if err != nil {
		return nil, err
	}
	all, err := i.checkServers(ctx)
	if err != nil {
		return nil, fmt.Errorf("redischannels/inspect: doctor: %w", bridge.RedisError(err))
	}
	topics, err := i.checkTopics(ctx, query.Match, limit)
	if err != nil {
		return nil, fmt.Errorf("redischannels/inspect: doctor: %w", err)
	}
	all = append(all, topics...)
	sortFindings(all)
	return all, nil
}

func (i *Inspector) checkServers(ctx context.Context) (all []Finding, err error) {
	var mu sync.Mutex
	err = eachMaster(ctx, i.config.Client, func(ctx context.Context, node *redis.Client) error {
		findings, err := checkServer(ctx, node)
		mu.Lock()
		defer mu.Unlock()
		all = append(all, findings...)
		return err
	})
	return all, err
}

// eachMaster calls a function for every server that has data of its own.
func eachMaster(ctx context.Context, client redis.UniversalClient, fn func(context.Context, *redis.Client) error) error {
	if c, ok := client.(*redis.ClusterClient); ok {
		return c.ForEachMaster(ctx, fn)
	}
	return fn(ctx, client.(*redis.Client))
}

// server is what a server reports of itself.
type server struct {
	address string
	info    map[string]string
	skew    time.Duration // how far its clock is ahead of ours
	margin  time.Duration // how far that may be wrong
	scripts error
}

// checkServer runs all checks of a server.
func checkServer(ctx context.Context, client *redis.Client) ([]Finding, error) {
	s, err := lookAtServer(ctx, client)
	switch {
	case err == nil:
	case redisconn.Classify(err) == redisconn.KindNoPerm:
		return []Finding{{
			Check: "permission", Severity: SeverityWarning, Node: s.address,
			Problem: "the Redis user may not run INFO or TIME, so the server was not checked: " + err.Error(),
			Action:  "run the doctor as a user with +info +time +eval",
		}}, nil
	default:
		return nil, err
	}
	var findings []Finding
	for _, check := range serverChecks {
		if f, found := check(s); found {
			f.Node = s.address
			findings = append(findings, f)
		}
	}
	return findings, nil
}

func lookAtServer(ctx context.Context, client *redis.Client) (server, error) {
	s := server{address: client.Options().Addr, info: make(map[string]string)}
	text, err := client.Info(ctx).Result()
	if err != nil {
		return s, err
	}
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			s.info[name] = value
		}
	}
	begun := time.Now()
	now, err := client.Time(ctx).Result()
	if err != nil {
		return s, err
	}
	s.margin = time.Since(begun) / 2
	s.skew = now.Sub(begun.Add(s.margin))
	if s.scripts = client.Eval(ctx, "return 1", nil).Err(); s.scripts != nil && !redisconn.IsReply(s.scripts) {
		return s, s.scripts
	}
	return s, nil
}
