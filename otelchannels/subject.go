package otelchannels

import (
	"sync"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/flaminco/redischannels"
)

// The values of messaging.system and of messaging.operation.name.
const (
	systemStreams = "redis_streams"
	systemPubSub  = "redis_pubsub"
	opPublish     = "publish"
	opProcess     = "process"
)

// maxSubjects bounds the subjects that are kept. Those of further topics are made for each message.
const maxSubjects = 10_000

// subjectKey identifies a subject.
type subjectKey struct {
	topic, group    string
	pubSub, process bool
}

// subject is what the spans and metrics of one operation on one topic have in common.
type subject struct {
	span       string
	start      []trace.SpanStartOption
	attributes []attribute.KeyValue

	mu       sync.RWMutex
	measures map[string]*measure // by failure or outcome
}

// measure has the options of the metrics with one failure or outcome.
type measure struct {
	failure string
	add     []metric.AddOption
	record  []metric.RecordOption
}

// subjects are made once per topic.
type subjects struct {
	mu    sync.RWMutex
	byKey map[subjectKey]*subject
}

func (s *subjects) get(key subjectKey, destination func(string) string) *subject {
	s.mu.RLock()
	found := s.byKey[key]
	s.mu.RUnlock()
	if found != nil {
		return found
	}
	made := newSubject(key, destination(key.topic))
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byKey == nil {
		s.byKey = make(map[subjectKey]*subject)
	}
	if len(s.byKey) < maxSubjects {
		s.byKey[key] = made
	}
	return made
}

func (i *instrumentation) publishing(topic string, pubSub bool) *subject {
	return i.subjects.get(subjectKey{topic: topic, pubSub: pubSub}, i.config.Destination)
}

func (i *instrumentation) processing(p redischannels.Processing) *subject {
	return i.subjects.get(subjectKey{topic: p.Topic, group: p.Group, pubSub: p.PubSub, process: true}, i.config.Destination)
}

func newSubject(key subjectKey, destination string) *subject {
	system := systemStreams
	if key.pubSub {
		system = systemPubSub
	}
	operation, kind, name := semconv.MessagingOperationTypeSend, trace.SpanKindProducer, opPublish
	if key.process {
		operation, kind, name = semconv.MessagingOperationTypeProcess, trace.SpanKindConsumer, opProcess
	}
	s := &subject{span: name + " " + destination, measures: make(map[string]*measure)}
	s.attributes = []attribute.KeyValue{
		semconv.MessagingSystemKey.String(system), semconv.MessagingOperationName(name), semconv.MessagingDestinationName(destination),
	}
	if key.group != "" {
		s.attributes = append(s.attributes, semconv.MessagingConsumerGroupName(key.group))
	}
	s.start = []trace.SpanStartOption{
		trace.WithSpanKind(kind), trace.WithAttributes(append([]attribute.KeyValue{operation}, s.attributes...)...),
	}
	return s
}

// measured returns the measure of a publication with this failure.
func (s *subject) measured(failure string) *measure {
	return s.measure(failure, failure)
}

// ended returns the measure of deliveries with this outcome.
func (s *subject) ended(o redischannels.ProcessOutcome) *measure {
	return s.measure(o.String(), processFailure(o), outcomeKey.String(o.String()))
}

func (s *subject) measure(name, failure string, more ...attribute.KeyValue) *measure {
	s.mu.RLock()
	found := s.measures[name]
	s.mu.RUnlock()
	if found != nil {
		return found
	}
	attributes := append(append([]attribute.KeyValue{}, s.attributes...), more...)
	if failure != "" {
		attributes = append(attributes, semconv.ErrorTypeKey.String(failure))
	}
	option := metric.WithAttributeSet(attribute.NewSet(attributes...))
	m := &measure{failure: failure, add: []metric.AddOption{option}, record: []metric.RecordOption{option}}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.measures[name] = m
	return m
}
