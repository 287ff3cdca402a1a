package promchannels

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/flaminco/redischannels"
)

// DefaultMaxTopics is the default number of topics that have labels of their own.
const DefaultMaxTopics = 1000

// OtherTopics is the value of the label topic for topics beyond MaxTopics.
const OtherTopics = "_other"

// Config configures [NewMetrics]. The zero value works.
type Config struct {
	// Buckets are the upper bounds of the histograms in seconds, in ascending order. Defaults to
	// prometheus.DefBuckets.
	Buckets []float64

	// Topic returns the value of the label topic, for example without the ID of a run. Defaults to
	// the topic.
	Topic func(topic string) string

	// MaxTopics bounds the number of values of the label topic, at least 1; further ones share
	// OtherTopics. Defaults to DefaultMaxTopics.
	MaxTopics int
}

// Metrics counts messages and measures durations. Use it as the Instrumentation of hubs, publishers
// and subscribers, its OnEvent as theirs, and register it once. It is safe for concurrent use.
type Metrics struct {
	config    Config
	published *prometheus.CounterVec
	publish   *prometheus.HistogramVec
	processed *prometheus.CounterVec
	process   *prometheus.HistogramVec
	events    *prometheus.CounterVec

	mu       sync.RWMutex
	topics   map[string]string // labels by topic
	labels   map[string]struct{}
	subjects map[subjectKey]*subject
	last     atomic.Pointer[subject] // most processes handle message after message of one topic
}

var (
	_ redischannels.Instrumentation = (*Metrics)(nil)
	_ prometheus.Collector          = (*Metrics)(nil)
)

// NewMetrics returns metrics that are not registered. The error wraps [redischannels.ErrInvalidConfig].
func NewMetrics(config Config) (*Metrics, error) {
	if config.MaxTopics < 0 {
		return nil, invalid("Config.MaxTopics", fmt.Errorf("must be at least 1, or 0 for %d, got %d", DefaultMaxTopics, config.MaxTopics))
	}
	for i := 1; i < len(config.Buckets); i++ {
		if config.Buckets[i-1] >= config.Buckets[i] {
			return nil, invalid("Config.Buckets", fmt.Errorf("must be in ascending order, got %v before %v", config.Buckets[i-1], config.Buckets[i]))
		}
	}
	config.MaxTopics = cmp.Or(config.MaxTopics, DefaultMaxTopics)
	if config.Topic == nil {
		config.Topic = func(topic string) string { return topic }
	}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help}, labels)
	}
	histogram := func(name, help string, labels ...string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: namespace, Name: name, Help: help, Buckets: config.Buckets}, labels)
	}
	return &Metrics{
		config:    config,
		published: counter("published_messages_total", "Messages by the outcome of their publication.", "topic", "outcome"),
		publish:   histogram("publish_duration_seconds", "Duration of calls that publish.", "topic"),
		processed: counter("processed_messages_total", "Deliveries by their outcome.", "topic", "group", "outcome"),
		process:   histogram("process_duration_seconds", "Time from the receipt of a message until its delivery ended.", "topic", "group"),
		events:    counter("events_total", "Events of subscriptions.", "topic", "group", "kind"),
		topics:    make(map[string]string),
		labels:    make(map[string]struct{}),
		subjects:  make(map[subjectKey]*subject),
	}, nil
}

const namespace = "redischannels"

func invalid(field string, problem error) error {
	if problem == nil {
		return nil
	}
	return fmt.Errorf("promchannels: %s: %w: %w", field, redischannels.ErrInvalidConfig, problem)
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(out chan<- *prometheus.Desc) {
	for _, c := range m.collectors() {
		c.Describe(out)
	}
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(out chan<- prometheus.Metric) {
	for _, c := range m.collectors() {
		c.Collect(out)
	}
}

func (m *Metrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.published, m.publish, m.processed, m.process, m.events}
}

// OnEvent counts an event. It is for the OnEvent of a hub or a subscriber.
func (m *Metrics) OnEvent(e redischannels.Event) {
	m.mu.Lock()
	topic := m.label(e.Topic)
	m.mu.Unlock()
	m.events.WithLabelValues(topic, e.Group, e.Kind.String()).Inc()
}

// label returns the label of a topic. It must be called with the lock.
func (m *Metrics) label(topic string) string {
	if known, ok := m.topics[topic]; ok {
		return known
	}
	name := label(m.config.Topic(topic))
	if _, known := m.labels[name]; !known && len(m.labels) >= m.config.MaxTopics {
		return OtherTopics
	}
	m.labels[name] = struct{}{}
	if len(m.topics) < m.config.MaxTopics { // Config.Topic may map any number to one
		m.topics[topic] = name
	}
	return name
}

// subjectKey identifies the metrics of publications to a topic, or of deliveries to a group.
type subjectKey struct {
	topic, group string
	process      bool
}

// subject has metrics whose labels were looked up.
type subject struct {
	key      subjectKey
	duration prometheus.Observer
	outcomes [16]prometheus.Counter // by number
}

func (m *Metrics) subject(key subjectKey) *subject {
	if last := m.last.Load(); last != nil && last.key == key {
		return last
	}
	m.mu.RLock()
	found := m.subjects[key]
	m.mu.RUnlock()
	if found != nil {
		m.last.Store(found)
		return found
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.newSubject(m.label(key.topic), key)
	if len(m.subjects) < 2*m.config.MaxTopics {
		m.subjects[key] = s
	}
	return s
}

func (m *Metrics) newSubject(topic string, key subjectKey) *subject {
	s := &subject{key: key}
	if key.process {
		s.duration = m.process.WithLabelValues(topic, key.group)
		for o := redischannels.ProcessAcked; o <= redischannels.ProcessWithdrawn; o++ {
			s.outcomes[o] = m.processed.WithLabelValues(topic, key.group, o.String())
		}
		return s
	}
	s.duration = m.publish.WithLabelValues(topic)
	for o := redischannels.OutcomeNotAppended; o <= redischannels.OutcomeScheduled; o++ {
		s.outcomes[o] = m.published.WithLabelValues(topic, o.String())
	}
	return s
}

// PublishStart implements redischannels.Instrumentation.
func (m *Metrics) PublishStart(ctx context.Context, _ redischannels.Publication) (context.Context, message.Metadata) {
	return ctx, nil
}

// PublishEnd implements redischannels.Instrumentation. In a call without an error all messages count as appended, delayed ones too.
func (m *Metrics) PublishEnd(_ context.Context, p redischannels.Publication, took time.Duration, err error) {
	s := m.subject(subjectKey{topic: p.Topic})
	s.duration.Observe(took.Seconds())
	var failed *redischannels.PublishError
	switch {
	case err == nil:
		s.outcomes[redischannels.OutcomeAppended].Add(float64(len(p.Messages)))
	case errors.As(err, &failed):
		for _, r := range failed.Results {
			s.outcomes[r.Outcome].Inc()
		}
	default:
		s.outcomes[redischannels.OutcomeNotAppended].Add(float64(len(p.Messages)))
	}
}

// ProcessStart implements redischannels.Instrumentation.
func (m *Metrics) ProcessStart(ctx context.Context, _ redischannels.Processing) context.Context {
	return ctx
}

// ProcessEnd implements redischannels.Instrumentation.
func (m *Metrics) ProcessEnd(_ context.Context, p redischannels.Processing, end redischannels.ProcessEnd) {
	s := m.subject(subjectKey{topic: p.Topic, group: p.Group, process: true})
	s.outcomes[end.Outcome].Inc()
	if end.Outcome != redischannels.ProcessWithdrawn {
		s.duration.Observe(end.Duration.Seconds())
	}
}
