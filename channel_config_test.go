package redischannels

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

// leaves calls f for every field that counts singly: those of nested configurations, but not
// those of a Backoff, a Retention or a Durability.
func leaves(v reflect.Value, path string, f func(path string, field reflect.Value)) {
	for i := range v.NumField() {
		field, name := v.Field(i), strings.TrimPrefix(path+"."+v.Type().Field(i).Name, ".")
		if field.Kind() == reflect.Struct && !isWhole(field.Type()) {
			leaves(field, name, f)
		} else {
			f(name, field)
		}
	}
}

// values makes values that are not zero.
type values struct {
	t       *testing.T
	clients []any
}

// of returns a value of a type; others differ by n.
func (m values) of(typ reflect.Type, n int) reflect.Value {
	v := reflect.New(typ).Elem()
	switch typ.Kind() {
	case reflect.String:
		v.SetString(strings.Repeat("x", n))
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(n))
	case reflect.Uint8:
		v.SetUint(1)
	case reflect.Float64:
		v.SetFloat(float64(n))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Map:
		v.Set(reflect.MakeMap(typ))
		v.SetMapIndex(m.of(typ.Key(), n), m.of(typ.Elem(), n))
	case reflect.Pointer:
		v.Set(reflect.New(typ.Elem()))
		v.Elem().Set(m.of(typ.Elem(), n))
	case reflect.Slice:
		v.Set(reflect.Append(v, m.of(typ.Elem(), n)))
	case reflect.Func:
		v.Set(reflect.MakeFunc(typ, func([]reflect.Value) []reflect.Value { return nil }))
	case reflect.Struct:
		for i := range v.NumField() {
			v.Field(i).Set(m.of(v.Field(i).Type(), n))
		}
	case reflect.Interface:
		for _, impl := range [][]any{
			{JSON, Bytes}, {WatermillMarshaler{}, FlamincoMarshaler{}}, {EnvelopeMarshaler{}, RawPayload{}},
			m.clients, {joined{nil}, joined{}},
		} {
			if reflect.TypeOf(impl[0]).Implements(typ) {
				v.Set(reflect.ValueOf(impl[n%2]))
			}
		}
	default:
		m.t.Fatalf("no value for %s", typ)
	}
	require.False(m.t, v.IsZero(), typ)
	return v
}

// same compares values, functions by whether both are set.
func same(a, b reflect.Value) bool {
	if a.Kind() == reflect.Func {
		return a.IsNil() == b.IsNil()
	}
	return reflect.DeepEqual(a.Interface(), b.Interface())
}

func TestFillZeros_EveryField(t *testing.T) {
	t.Parallel()
	t.Run("Stream", testFillZeros[StreamChannelConfig])
	t.Run("PubSub", testFillZeros[PubSubChannelConfig])
}

// Each field alone overrides its default, and every other is taken from the defaults.
func testFillZeros[C any](t *testing.T) {
	m := values{t: t}
	for _, addr := range []string{"a:1", "b:1"} {
		client := redis.NewClient(&redis.Options{Addr: addr})
		t.Cleanup(func() { _ = client.Close() })
		m.clients = append(m.clients, client)
	}
	var defaults C
	fields := 0
	leaves(reflect.ValueOf(&defaults).Elem(), "", func(path string, field reflect.Value) {
		field.Set(m.of(field.Type(), 1000))
		fields++
	})
	require.Greater(t, fields, 20)
	for i := range fields {
		var config C
		n, own := 0, ""
		leaves(reflect.ValueOf(&config).Elem(), "", func(path string, field reflect.Value) {
			if n == i {
				field.Set(m.of(field.Type(), 7))
				own = path
			}
			n++
		})
		filled, want := fillZeros(config, defaults), map[string]reflect.Value{}
		for _, from := range []*C{&defaults, &config} {
			leaves(reflect.ValueOf(from).Elem(), "", func(path string, field reflect.Value) {
				if !field.IsZero() {
					want[path] = field
				}
			})
		}
		leaves(reflect.ValueOf(&filled).Elem(), "", func(path string, field reflect.Value) {
			require.True(t, same(want[path], field), "%s, with %s set: %v", path, own, field)
		})
	}
}

// Half of one Backoff and half of another is one that was never configured.
func TestFillZeros_WholeValues(t *testing.T) {
	t.Parallel()
	filled := fillZeros(
		StreamChannelConfig{Publisher: PublisherConfig{Retention: Retention{MaxLen: 5}}, Subscriber: SubscriberConfig{NackBackoff: Backoff{Min: time.Second}}},
		StreamChannelConfig{Publisher: PublisherConfig{Retention: Retention{MaxAge: time.Hour}}, Subscriber: SubscriberConfig{NackBackoff: Backoff{Max: time.Millisecond}}},
	)
	require.Equal(t, Retention{MaxLen: 5}, filled.Publisher.Retention)
	require.Equal(t, Backoff{Min: time.Second}, filled.Subscriber.NackBackoff)
}

// Every wrong field is named, with the configuration that it belongs to.
func TestChannelConfig_Validate(t *testing.T) {
	t.Parallel()
	subscriber := func(c SubscriberConfig) error { return StreamChannelConfig{Subscriber: c}.Validate() }
	pubsub := func(c PubSubSubscriberConfig) error { return PubSubChannelConfig{Subscriber: c}.Validate() }
	for field, err := range map[string]error{
		"StreamChannelConfig.MaxLag":                    StreamChannelConfig{MaxLag: -1}.Validate(),
		"StreamChannelConfig.MaxLen":                    StreamChannelConfig{MaxLen: -1}.Validate(),
		"StreamChannelConfig.Subscriber.MaxInFlight":    subscriber(SubscriberConfig{MaxInFlight: -1}),
		"StreamChannelConfig.Subscriber.MaxPayload":     subscriber(SubscriberConfig{MaxPayload: -2}),
		"StreamChannelConfig.Subscriber.StartFrom":      subscriber(SubscriberConfig{StartFrom: AfterID("x")}),
		"StreamChannelConfig.Subscriber.Tuning.MinIdle": subscriber(SubscriberConfig{Tuning: Tuning{MinIdle: 1}}),
		"StreamChannelConfig.Publisher.Retention":       StreamChannelConfig{Publisher: PublisherConfig{Retention: Retention{MaxLen: -1}}}.Validate(),
		"StreamChannelConfig.Publisher.Timeout":         StreamChannelConfig{Publisher: PublisherConfig{Timeout: 1}}.Validate(),
		"HubConfig.Stream.MaxLag":                       HubConfig{Stream: StreamChannelConfig{MaxLag: -1}}.Validate(),
		"HubConfig.PubSub.Subscriber.Buffer":            HubConfig{PubSub: PubSubChannelConfig{Subscriber: PubSubSubscriberConfig{Buffer: -1}}}.Validate(),
		"PubSubChannelConfig.Publisher.Timeout":         PubSubChannelConfig{Publisher: PubSubPublisherConfig{Timeout: 1}}.Validate(),
		"PubSubChannelConfig.Subscriber.Drop":           pubsub(PubSubSubscriberConfig{Drop: 7}),
		"PubSubChannelConfig.Subscriber.Patterns":       PubSubChannelConfig{Sharded: true, Subscriber: PubSubSubscriberConfig{Patterns: true}}.Validate(),
		"ChannelConfig.DrainTimeout":                    ChannelConfig[int]{DrainTimeout: 1}.Validate(),
		"ChannelConfig.Codec":                           ChannelConfig[func()]{}.Validate(),
	} {
		require.ErrorIs(t, err, ErrInvalidConfig, field)
		require.ErrorContains(t, err, field)
		require.NotContains(t, err.Error(), "\n", "each is reported once")
	}
	both := StreamChannelConfig{MaxLag: -1, MaxLen: -1}.Validate()
	require.ErrorContains(t, both, "StreamChannelConfig.MaxLag")
	require.ErrorContains(t, both, "StreamChannelConfig.MaxLen")
	require.NoError(t, StreamChannelConfig{}.Validate())
	require.NoError(t, PubSubChannelConfig{}.Validate())
	require.NoError(t, HubConfig{}.Validate())
	require.NoError(t, ChannelConfig[int]{}.Validate())
}

// Settings of a hub must not be set on its channels, nor settings of a channel for both
// directions on one of them.
func TestChannelConfig_FieldsOfTheHub(t *testing.T) {
	t.Parallel()
	client := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"})
	t.Cleanup(func() { _ = client.Close() })
	side := func(topic string) string { return topic }
	stream := StreamChannelConfig{
		Format:    WatermillMarshaler{},
		Publisher: PublisherConfig{Client: client, Marshaler: FlamincoMarshaler{}, SideKeys: side},
		Subscriber: SubscriberConfig{
			Client: client, Unmarshaler: FlamincoMarshaler{}, SideKeys: side, OnEvent: func(Event) {}, OnReadClient: func(*redis.Client) {},
		},
	}
	pubsub := PubSubChannelConfig{
		Format:    RawPayload{},
		Publisher: PubSubPublisherConfig{Client: client, Marshaler: RawPayload{}, Sharded: true, ChannelPrefix: "x"},
		Subscriber: PubSubSubscriberConfig{
			Client: client, Unmarshaler: RawPayload{}, OnEvent: func(Event) {}, OnReadClient: func(*redis.Client) {}, Sharded: true, ChannelPrefix: "x",
		},
	}
	common := []string{"Publisher.Client", "Publisher.Marshaler", "Subscriber.Client", "Subscriber.OnEvent", "Subscriber.OnReadClient", "Subscriber.Unmarshaler"}
	streamFields := append([]string{"Publisher.SideKeys", "Subscriber.SideKeys"}, common...)
	pubsubFields := append([]string{"Publisher.Sharded", "Publisher.ChannelPrefix", "Subscriber.Sharded", "Subscriber.ChannelPrefix"}, common...)
	hub, err := NewHub(client, HubConfig{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, hub.Close()) })
	_, ofStream := NewStreamChannel[int](hub, "k", stream)
	_, ofPubSub := NewPubSubChannel[int](hub, "k", pubsub)
	for _, test := range []struct {
		err    error
		prefix string
		fields []string
	}{
		{stream.Validate(), "StreamChannelConfig.", streamFields},
		{ofStream, "StreamChannelConfig.", streamFields},
		{HubConfig{Stream: stream}.Validate(), "HubConfig.Stream.", streamFields},
		{pubsub.Validate(), "PubSubChannelConfig.", pubsubFields},
		{ofPubSub, "PubSubChannelConfig.", pubsubFields},
		{HubConfig{PubSub: pubsub}.Validate(), "HubConfig.PubSub.", pubsubFields},
	} {
		require.ErrorIs(t, test.err, ErrInvalidConfig)
		for _, field := range test.fields {
			require.ErrorContains(t, test.err, "redischannels: "+test.prefix+field+": invalid configuration: must not be set")
		}
	}
	require.ErrorContains(t, ofStream, "must not be set on a channel, which uses the client of the hub")
	require.ErrorContains(t, ofStream, "must not be set on a channel, which uses HubConfig.OnEvent")
	require.ErrorContains(t, ofStream, "must not be set: Format of the channel is for both directions")
	require.Empty(t, hub.publishers)
}

// The format of a channel counts before the marshalers of its hub, and the other way round.
func TestChannelConfig_Format(t *testing.T) {
	t.Parallel()
	client := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"})
	t.Cleanup(func() { _ = client.Close() })
	configOf := func(ofHub, own StreamChannelConfig) StreamChannelConfig {
		hub, err := NewHub(client, HubConfig{Stream: ofHub})
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, hub.Close()) })
		var v validation
		config := hub.streamConfig(&v, own)
		require.NoError(t, v.err())
		return config
	}
	flaminco := StreamChannelConfig{Format: FlamincoMarshaler{}}
	writing := StreamChannelConfig{Publisher: PublisherConfig{Marshaler: FieldsMarshaler{}}}
	for _, test := range []struct {
		hub, own  StreamChannelConfig
		marshaler Marshaler
		from      Unmarshaler
	}{
		{StreamChannelConfig{}, StreamChannelConfig{}, WatermillMarshaler{}, WatermillMarshaler{}},
		{StreamChannelConfig{}, flaminco, FlamincoMarshaler{}, FlamincoMarshaler{}},
		{flaminco, StreamChannelConfig{}, FlamincoMarshaler{}, FlamincoMarshaler{}},
		{flaminco, writing, FieldsMarshaler{}, FlamincoMarshaler{}},
		{writing, flaminco, FlamincoMarshaler{}, FlamincoMarshaler{}},
		{writing, StreamChannelConfig{}, FieldsMarshaler{}, WatermillMarshaler{}},
	} {
		config := configOf(test.hub, test.own)
		require.Equal(t, test.marshaler, config.Publisher.Marshaler)
		require.Equal(t, test.from, config.Subscriber.Unmarshaler)
	}
}

// A channel has the defaults of channels, and what is turned off stays so through both.
func TestChannelConfig_Defaults(t *testing.T) {
	t.Parallel()
	client := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"})
	t.Cleanup(func() { _ = client.Close() })
	hub, err := NewHub(client, HubConfig{Codec: Bytes, Stream: StreamChannelConfig{
		MaxLag:     5,
		Subscriber: SubscriberConfig{ConsumerGroup: "g", NackBackoff: Backoff{Jitter: NoJitter}, Tuning: Tuning{Prefetch: 7}},
	}})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, hub.Close()) })
	var v validation
	config := hub.streamConfig(&v, StreamChannelConfig{})
	require.NoError(t, v.err())
	require.Equal(t, "g", config.Subscriber.ConsumerGroup)
	require.Equal(t, Oldest, config.Subscriber.StartFrom)
	require.Equal(t, DefaultChannelMaxInFlight, config.Subscriber.MaxInFlight)
	require.Equal(t, 7, config.Subscriber.Tuning.Prefetch)
	require.EqualValues(t, 5, config.MaxLag)
	require.Equal(t, Bytes, config.Codec)
	settings := config.Subscriber.settings()
	require.EqualValues(t, NoJitter, settings.NackBackoff.Jitter)
	require.Equal(t, time.Second, Backoff{Min: time.Second, Jitter: NoJitter}.withDefaults().after(1))

	own := StreamChannelConfig{Codec: String, Subscriber: SubscriberConfig{ConsumerGroup: NoConsumerGroup, Tuning: Tuning{Prefetch: NoPrefetch}}}
	config = hub.streamConfig(&v, own)
	require.NoError(t, v.err())
	require.Empty(t, config.Subscriber.ConsumerGroup)
	require.Equal(t, Latest, config.Subscriber.StartFrom)
	require.Equal(t, NoPrefetch, config.Subscriber.Tuning.Prefetch)
	require.Zero(t, config.MaxLag, "a default for channels that have a group")
	require.Equal(t, String, config.Codec)
	own.MaxLag = 1
	hub.streamConfig(&v, own)
	require.ErrorContains(t, v.err(), "MaxLag")
}

// A field that only this package can set makes two configurations differ that look the same.
func TestConfigs_HaveNoHiddenFields(t *testing.T) {
	t.Parallel()
	var check func(typ reflect.Type)
	check = func(typ reflect.Type) {
		for field := range typ.Fields() {
			require.True(t, field.IsExported(), "%s.%s", typ, field.Name)
			if field.Type.Kind() == reflect.Struct {
				check(field.Type)
			}
		}
	}
	for _, config := range []any{HubConfig{}, ChannelConfig[int]{}, HandleConfig{}, RegistryConfig{}, DeadLettersConfig{}} {
		check(reflect.TypeOf(config))
	}
}
