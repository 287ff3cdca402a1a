package promchannels

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/inspect"
	"github.com/flaminco/redischannels/internal/cached"
)

// Defaults of [CollectorConfig].
const (
	DefaultTimeout = 5 * time.Second
	DefaultMaxAge  = 15 * time.Second
)

// CollectorConfig configures [NewCollector]. Inspector is required.
type CollectorConfig struct {
	// Inspector reads from Redis.
	Inspector *inspect.Inspector

	// Topics are the topics to read. Defaults to all of the database, which a scan of its keys finds.
	Topics []string

	// MaxTopics bounds the topics that a scan finds, at least 1. Defaults to DefaultMaxTopics.
	MaxTopics int

	// Timeout bounds the time of a scrape, at least 1 ms: that of the scraper must be longer. Without
	// a reply by then the scrape has redischannels_collector_up 0, and no other metric. Defaults to
	// DefaultTimeout.
	Timeout time.Duration

	// MaxAge is for how long a result is used, at least 1 ms, however many scrapers there are.
	// Defaults to DefaultMaxAge.
	MaxAge time.Duration
}

// Collector reads the state of topics and groups from Redis when it is scraped. One read is in
// progress at a time. It is safe for concurrent use.
type Collector struct {
	state *cached.Value[state]
}

// state is the result of one read.
type state struct {
	topics []inspect.Topic
	groups []inspect.Group
	took   time.Duration
}

var _ prometheus.Collector = (*Collector)(nil)

// NewCollector returns a collector that is not registered, and which [Collector.Close] closes. It
// sends no commands to Redis. The error wraps [redischannels.ErrInvalidConfig].
func NewCollector(config CollectorConfig) (*Collector, error) {
	var errs []error
	if config.Inspector == nil {
		errs = append(errs, invalid("CollectorConfig.Inspector", errors.New("must not be nil")))
	}
	if config.MaxTopics < 0 {
		errs = append(errs, invalid("CollectorConfig.MaxTopics", fmt.Errorf("must be at least 1, or 0 for %d, got %d", DefaultMaxTopics, config.MaxTopics)))
	}
	for field, d := range map[string]time.Duration{"Timeout": config.Timeout, "MaxAge": config.MaxAge} {
		if d != 0 && d < time.Millisecond {
			errs = append(errs, invalid("CollectorConfig."+field, fmt.Errorf("must be at least 1ms, or 0 for the default, got %v", d)))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	config.MaxTopics = cmp.Or(config.MaxTopics, DefaultMaxTopics)
	return &Collector{cached.New(config.read, cmp.Or(config.Timeout, DefaultTimeout), cmp.Or(config.MaxAge, DefaultMaxAge), redischannels.ErrClosed)}, nil
}

// Close waits for the read in progress. Later scrapes have redischannels_collector_up 0.
func (c *Collector) Close() error { return c.state.Close() }

// read reads all topics with their groups.
func (c CollectorConfig) read(ctx context.Context) (s state, err error) {
	begun := time.Now()
	if s.topics, err = c.topics(ctx); err != nil {
		return s, err
	}
	for _, topic := range s.topics {
		for group, err := range c.Inspector.Groups(ctx, topic.Name) {
			if errors.Is(err, inspect.ErrNoTopic) || errors.Is(err, inspect.ErrNoGroup) {
				break // deleted meanwhile, or nothing is appended yet
			}
			if err != nil {
				return s, err
			}
			s.groups = append(s.groups, group)
		}
	}
	s.took = time.Since(begun)
	return s, nil
}

func (c CollectorConfig) topics(ctx context.Context) (topics []inspect.Topic, err error) {
	for _, name := range c.Topics {
		topic, err := c.Inspector.Topic(ctx, name)
		if errors.Is(err, inspect.ErrNoTopic) {
			continue
		}
		if err != nil {
			return nil, err
		}
		topics = append(topics, topic)
	}
	if len(c.Topics) > 0 {
		return topics, nil
	}
	for topic, err := range c.Inspector.Topics(ctx, inspect.TopicsQuery{Limit: c.MaxTopics}) {
		if err != nil {
			return nil, err
		}
		if topic.Problem == "" {
			topics = append(topics, topic)
		}
	}
	return topics, nil
}

func gauge(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(prometheus.BuildFQName(namespace, "", name), help, labels, nil)
}

// The gauges of a group, of a topic, and of the collector.
var (
	groupGauges = []struct {
		desc  *prometheus.Desc
		value func(g inspect.Group) float64
	}{
		{gauge("lag", "Entries that were not delivered to the group yet, at least.", "topic", "group"), func(g inspect.Group) float64 { return float64(g.Lag.AtLeast) }},
		{gauge("pending", "Entries that were delivered to the group and not acknowledged, deferred ones included.", "topic", "group"), func(g inspect.Group) float64 { return float64(g.Pending) }},
		{gauge("deferred", "Retries of the group that wait in Redis.", "topic", "group"), func(g inspect.Group) float64 { return float64(g.Deferred) }},
		{gauge("oldest_pending_seconds", "Age of the oldest pending entry of the group, 0 without one.", "topic", "group"), oldest},
		{gauge("consumers_alive", "Consumers of the group that read.", "topic", "group"), func(g inspect.Group) float64 { return float64(g.Alive) }},
		{gauge("paused", "1 if the group is paused.", "topic", "group"), func(g inspect.Group) float64 { return number(g.Paused) }},
	}
	topicGauges = []struct {
		desc  *prometheus.Desc
		value func(t inspect.Topic) float64
	}{
		{gauge("length", "Entries of the topic.", "topic"), func(t inspect.Topic) float64 { return float64(t.Length) }},
		{gauge("bytes", "Memory of the topic in bytes, an estimate of Redis.", "topic"), func(t inspect.Topic) float64 { return float64(t.Bytes) }},
		{gauge("dead_letters", "Dead letters of the topic.", "topic"), func(t inspect.Topic) float64 { return float64(t.DeadLetters) }},
		{gauge("delayed", "Messages that are not appended to the topic yet.", "topic"), func(t inspect.Topic) float64 { return float64(t.Delayed) }},
	}
	upGauge       = gauge("collector_up", "1 if Redis has replied to the collector in time.")
	durationGauge = gauge("collector_duration_seconds", "Duration of the last read of the collector.")
)

func oldest(g inspect.Group) float64 {
	if g.OldestPending.IsZero() {
		return 0
	}
	return max(0, g.At.Sub(g.OldestPending).Seconds())
}

// label returns a name as the value of a label, which must be UTF-8.
func label(name string) string { return strings.ToValidUTF8(name, "?") }

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// Describe implements prometheus.Collector.
func (*Collector) Describe(out chan<- *prometheus.Desc) {
	for _, g := range groupGauges {
		out <- g.desc
	}
	for _, g := range topicGauges {
		out <- g.desc
	}
	out <- upGauge
	out <- durationGauge
}

// Collect implements prometheus.Collector. It waits for Redis at most for CollectorConfig.Timeout.
func (c *Collector) Collect(out chan<- prometheus.Metric) {
	s, err := c.state.Get(context.Background())
	out <- prometheus.MustNewConstMetric(upGauge, prometheus.GaugeValue, number(err == nil))
	if err != nil {
		return
	}
	out <- prometheus.MustNewConstMetric(durationGauge, prometheus.GaugeValue, s.took.Seconds())
	for _, topic := range s.topics {
		for _, g := range topicGauges {
			out <- prometheus.MustNewConstMetric(g.desc, prometheus.GaugeValue, g.value(topic), label(topic.Name))
		}
	}
	for _, group := range s.groups {
		for _, g := range groupGauges {
			out <- prometheus.MustNewConstMetric(g.desc, prometheus.GaugeValue, g.value(group), label(group.Topic), label(group.Name))
		}
	}
}
