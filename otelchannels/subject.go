package otelchannels

import (
	"context"
	"reflect"
	"sync"
	"sync/atomic"

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
	key        subjectKey
	span       string
	start      []trace.SpanStartOption
	attributes []attribute.KeyValue

	root atomic.Pointer[rootContext]

	mu       sync.Mutex
	measures map[string]*measure         // of publications, by failure
	outcomes [16]atomic.Pointer[measure] // of deliveries, by number
}

// measure has the options of the metrics with one failure or outcome.
type measure struct {
	failure string
	add     []metric.AddOption
	record  []metric.RecordOption
}

// rootContext is a context without a span, and the context from which it was made.
type rootContext struct{ ctx, of context.Context }

// rootOf returns a context in which a span begins a new trace. The deliveries of a subscription have the same context, so
// it is made once: WithNewRoot makes one for each span, and the values of context.WithoutCancel cost memory too.
func (s *subject) rootOf(ctx context.Context) context.Context {
	if last := s.root.Load(); last != nil && last.of == ctx {
		return last.ctx
	}
	root := trace.ContextWithSpanContext(ctx, trace.SpanContext{})
	if reflect.ValueOf(ctx).Comparable() {
		s.root.Store(&rootContext{ctx: root, of: ctx})
	}
	return root
}

// subjects are made once per topic.
type subjects struct {
	mu    sync.RWMutex
	byKey map[subjectKey]*subject
	last  atomic.Pointer[subject] // most processes handle message after message of one topic
}

func (s *subjects) get(key subjectKey, destination func(string) string) *subject {
	if last := s.last.Load(); last != nil && last.key == key {
		return last
	}
	s.mu.RLock()
	found := s.byKey[key]
	s.mu.RUnlock()
	if found != nil {
		s.last.Store(found)
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
	s := &subject{key: key, span: name + " " + destination, measures: make(map[string]*measure)}
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
	s.mu.Lock()
	defer s.mu.Unlock()
	found := s.measures[failure]
	if found == nil {
		found = s.newMeasure(failure)
		s.measures[failure] = found
	}
	return found
}

// ended returns the measure of deliveries with this outcome.
func (s *subject) ended(o redischannels.ProcessOutcome) *measure {
	found := s.outcomes[o].Load()
	if found == nil {
		found = s.newMeasure(processFailure(o), outcomeKey.String(o.String()))
		s.outcomes[o].Store(found)
	}
	return found
}

func (s *subject) newMeasure(failure string, more ...attribute.KeyValue) *measure {
	attributes := append(append([]attribute.KeyValue{}, s.attributes...), more...)
	if failure != "" {
		attributes = append(attributes, semconv.ErrorTypeKey.String(failure))
	}
	option := metric.WithAttributeSet(attribute.NewSet(attributes...))
	return &measure{failure: failure, add: []metric.AddOption{option}, record: []metric.RecordOption{option}}
}
