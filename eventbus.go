package redischannels

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"sync"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/flaminco/redischannels/internal/jsontext"
)

// EventBus is a channel of events of several types, distinguished by the names of a
// [Registry] in the metadata. It is safe for concurrent use.
type EventBus[E any] struct {
	channel *Channel[E]
}

// NewStreamEventBus returns an event bus on a Redis stream: see [NewStreamChannel]. The codec
// must support the types of the registry. The errors are those of NewStreamChannel.
func NewStreamEventBus[E any](hub *Hub, key string, registry *Registry[E], config StreamChannelConfig) (*EventBus[E], error) {
	switch {
	case hub == nil:
		return nil, errNoHub
	case registry == nil:
		return nil, errNoRegistry
	}
	return busOf(newStreamChannel(hub, key, config, registry.coder))
}

// NewPubSubEventBus returns an event bus on a Redis Pub/Sub channel: see [NewPubSubChannel].
func NewPubSubEventBus[E any](hub *Hub, name string, registry *Registry[E], config PubSubChannelConfig) (*EventBus[E], error) {
	switch {
	case hub == nil:
		return nil, errNoHub
	case registry == nil:
		return nil, errNoRegistry
	}
	return busOf(newPubSubChannel(hub, name, config, registry.coder))
}

// NewEventBus returns an event bus over any Watermill publisher and subscriber: see [NewChannel].
func NewEventBus[E any](publisher message.Publisher, subscriber message.Subscriber, topic string, registry *Registry[E], config ChannelConfig[E]) (*EventBus[E], error) {
	if registry == nil {
		return nil, errNoRegistry
	}
	return busOf(newGenericChannel(publisher, subscriber, topic, config, registry.coder))
}

func busOf[E any](channel *Channel[E], err error) (*EventBus[E], error) {
	if err != nil {
		return nil, err
	}
	return &EventBus[E]{channel}, nil
}

// Publish writes events as [Writer.WriteAll] does. If a type is not registered, nothing is
// written and the error wraps [ErrUnknownEvent].
func (b *EventBus[E]) Publish(ctx context.Context, events ...E) (ids []string, err error) {
	return b.channel.writer.WriteAll(ctx, events...)
}

// Handle calls fn for each event as [Reader.Handle] does.
func (b *EventBus[E]) Handle(ctx context.Context, fn func(context.Context, E) error, config HandleConfig) error {
	return b.channel.reader.Handle(ctx, fn, config)
}

// Channel returns the channel of the bus.
func (b *EventBus[E]) Channel() *Channel[E] { return b.channel }

// Close closes the channel.
func (b *EventBus[E]) Close() error { return b.channel.Close() }

// EventNameKey is the metadata key of an event's name. The marshalers of Watermill's cqrs package
// use the same key, so both can share a topic if their GenerateName returns the names of the
// Registry.
const EventNameKey = "name"

// UnknownPolicy is the policy for an event that is read and whose name is not registered.
type UnknownPolicy uint8

// The policies for unknown names.
const (
	// RejectUnknown yields a *DecodeError that wraps ErrUnknownEvent; in a group the event is
	// dead-lettered.
	RejectUnknown UnknownPolicy = iota
	// SkipUnknown acknowledges the event and continues, without an event or a log line, for
	// programs that need only some of the events of a topic. An event without a name is rejected.
	SkipUnknown
)

var unknownPolicyNames = [...]string{RejectUnknown: "reject", SkipUnknown: "skip"}

// String returns the policy in one word.
func (p UnknownPolicy) String() string {
	return enumName(unknownPolicyNames[:], "policy for unknown names", p)
}

// MarshalText returns the same, for JSON and logs.
func (p UnknownPolicy) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText sets the value of that name. The error wraps [ErrInvalidArgument].
func (p *UnknownPolicy) UnmarshalText(text []byte) error {
	return parseEnum(unknownPolicyNames[:], "policy for unknown names", text, p)
}

// RegistryConfig configures [NewRegistry].
type RegistryConfig struct {
	// Unknown is the policy for names that are not registered. Defaults to RejectUnknown.
	Unknown UnknownPolicy
}

// Registry maps the types of an [EventBus] to names on the wire. The application chooses the
// names. A name that is not registered is never decoded, and no type is resolved from a name in a
// message. Fill the registry with [Register] and [Upcast] before it is passed to a bus, which
// copies it. The zero value is empty and rejects unknown names. It is safe for concurrent use.
type Registry[E any] struct {
	unknown UnknownPolicy

	mu     sync.Mutex
	kinds  map[string]eventKind[E]
	byType map[reflect.Type]string
}

// eventKind decodes the events of one name.
type eventKind[E any] struct {
	wire   reflect.Type // type of the payload
	decode func(codec Codec, data []byte) (E, error)
}

// NewRegistry returns an empty registry. E is the interface that all events implement, or any.
func NewRegistry[E any](config RegistryConfig) *Registry[E] {
	return &Registry[E]{unknown: config.Unknown}
}

// Register sets the name of type T: events of this type are written with the name, and events
// with the name are decoded as T. A type has one name, and a name has one type. The error wraps
// [ErrInvalidArgument].
func Register[T, E any](r *Registry[E], name string) error {
	t := reflect.TypeFor[T]()
	if !t.AssignableTo(reflect.TypeFor[E]()) {
		return invalidArgument("T", fmt.Errorf("must be assignable to %s, got %s for the name %q", reflect.TypeFor[E](), t, name))
	}
	if t.Kind() == reflect.Interface {
		return invalidArgument("T", fmt.Errorf("must not be an interface, got %s for the name %q", t, name))
	}
	return r.add(name, t, eventKind[E]{wire: t, decode: func(codec Codec, data []byte) (E, error) {
		var v T
		if err := codec.Decode(data, &v); err != nil {
			var none E
			return none, err
		}
		return any(v).(E), nil
	}})
}

// Upcast registers an old name: events with this name are decoded as Old and converted by up. No
// event is written with the name. If up returns an error the event is undecodable. The error of
// Upcast wraps [ErrInvalidArgument].
func Upcast[Old, E any](r *Registry[E], name string, up func(Old) (E, error)) error {
	if up == nil {
		return invalidArgument("up", errNil)
	}
	return r.add(name, nil, eventKind[E]{wire: reflect.TypeFor[Old](), decode: func(codec Codec, data []byte) (E, error) {
		var old Old
		if err := codec.Decode(data, &old); err != nil {
			var none E
			return none, err
		}
		today, err := up(old)
		if err == nil && any(today) == nil {
			err = jsontext.Problem("was made into nothing by the upcast")
		}
		return today, err
	}})
}

var errNoRegistry = invalidArgument("registry", errNil)

// add registers a name; written is the type of the events that are written with it.
func (r *Registry[E]) add(name string, written reflect.Type, kind eventKind[E]) error {
	if r == nil {
		return errNoRegistry
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if name == "" {
		return invalidArgument("name", fmt.Errorf("must not be empty, got \"\" for %s", kind.wire))
	}
	if other, ok := r.kinds[name]; ok {
		return invalidArgument("name", fmt.Errorf("must be new, got %q for %s, which stands for %s", name, kind.wire, other.wire))
	}
	if written != nil {
		if other, ok := r.byType[written]; ok {
			return invalidArgument("name", fmt.Errorf("must be the one of its type, got %q for %s, which has the name %q", name, written, other))
		}
		if r.byType == nil {
			r.byType = make(map[reflect.Type]string)
		}
		r.byType[written] = name
	}
	if r.kinds == nil {
		r.kinds = make(map[string]eventKind[E])
	}
	r.kinds[name] = kind
	return nil
}

// errSkip makes the reader acknowledge a message and read the next one.
var errSkip = errors.New("skip this event")

// isSkip reports whether an error is errSkip, which is never wrapped. errors.Is would call the
// methods of a codec's errors, which can panic.
func isSkip(err error) bool { return err == errSkip } //nolint:errorlint // see above

// coder returns a copy of the registry as a coder.
func (r *Registry[E]) coder(codec Codec) (coder[E], error) {
	r.mu.Lock()
	kinds, byType := maps.Clone(r.kinds), maps.Clone(r.byType)
	r.mu.Unlock()
	if codec == nil {
		codec = JSON
	}
	for name, kind := range kinds {
		if _, err := checkCodec(codec, kind.wire); err != nil {
			return coder[E]{}, fmt.Errorf("event %q: %w", name, err)
		}
	}
	known := func(metadata message.Metadata) (kind eventKind[E], name string, ok bool) {
		name = metadata[EventNameKey]
		kind, ok = kinds[name]
		return kind, name, ok
	}
	code := coder[E]{
		encode: func(v *E, msg *message.Message) (err error) {
			t := reflect.TypeOf(*v)
			name, ok := byType[t]
			if !ok {
				return fmt.Errorf("the type %v is not registered: %w", t, ErrUnknownEvent)
			}
			// The codec gets a pointer to the type itself, not to the interface.
			pointer := reflect.New(t)
			pointer.Elem().Set(reflect.ValueOf(*v))
			msg.Metadata[EventNameKey] = name
			msg.Payload, err = codec.Encode(pointer.Interface())
			return err
		},
		decode: func(payload []byte, metadata message.Metadata, v *E) (err error) {
			kind, name, ok := known(metadata)
			switch {
			case ok:
				*v, err = kind.decode(codec, payload)
				return err
			case name == "":
				return &DecodeError{Reason: "the metadata has no " + EventNameKey, Err: ErrUnknownEvent}
			case r.unknown == SkipUnknown:
				return errSkip
			default:
				return &DecodeError{Reason: "the name of the event is not registered", Err: ErrUnknownEvent}
			}
		},
	}
	if r.unknown == SkipUnknown {
		code.skip = func(metadata message.Metadata) bool {
			_, name, ok := known(metadata)
			return !ok && name != ""
		}
	}
	return code, nil
}
