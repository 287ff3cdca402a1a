package redischannels

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

// go-redis' parsers read the URL; scheme and parameters say which client it is for.
func TestOpenClientKinds(t *testing.T) {
	t.Parallel()
	for url, check := range map[string]func(c redis.UniversalClient) bool{
		"redis://h:1/3": func(c redis.UniversalClient) bool {
			o := c.(*redis.Client).Options()
			return o.Addr == "h:1" && o.DB == 3 && o.TLSConfig == nil
		},
		"rediss://u:p@h:1?pool_size=7": func(c redis.UniversalClient) bool {
			o := c.(*redis.Client).Options()
			return o.TLSConfig != nil && o.Username == "u" && o.PoolSize == 7
		},
		"unix:///tmp/x.sock":        func(c redis.UniversalClient) bool { return c.(*redis.Client).Options().Network == "unix" },
		"redis+cluster://h:1":       func(c redis.UniversalClient) bool { return len(c.(*redis.ClusterClient).Options().Addrs) == 1 },
		"redis://h:1?addr=i:2":      func(c redis.UniversalClient) bool { return len(c.(*redis.ClusterClient).Options().Addrs) == 2 },
		"rediss+cluster://h:1":      func(c redis.UniversalClient) bool { return c.(*redis.ClusterClient).Options().TLSConfig != nil },
		"redis://h:1?master_name=m": func(c redis.UniversalClient) bool { return c.(*redis.Client).Options().Addr == "FailoverClient" },
		"redis+sentinel://h:1/2?master_name=m&addr=i:2": func(c redis.UniversalClient) bool {
			return c.(*redis.Client).Options().DB == 2
		},
	} {
		client, err := openClient(url)
		require.NoError(t, err, url)
		require.True(t, check(client), url)
		require.NoError(t, client.Close())
	}
	// An error must not tell the password.
	for _, url := range []string{
		"redis://u:secret@h:x", "redis://u:secret@h/%zz", "x://u:secret@h", "redis+cluster://:secret@h:x", "u:secret@h:1",
		"redis://u:secret@h/x", "redis://u:secret@h?x=1", "redis+sentinel://u:secret@h:1", "redis://u:secret@h?db=x",
		// Characters that end the host are in the password, with digits before them, like a port.
		"redis://u:1/secret@h:6379", "redis://:1/secret@h", "redis://:1/se/cret/secret@h", "redis://u:1?secret@h:6379",
		"redis://u:1/secret?@h", "redis://u:1#secret@h", "redis://u:1@2/secret@h", "redis+cluster://:1?secret@h",
		"redis+sentinel://:1/secret@h?master_name=m", "redis://:1/secret@h?addr=i:2",
	} {
		_, err := openClient(url)
		require.Error(t, err, url)
		require.NotContains(t, err.Error(), "secret")
	}
	client, err := openClient("redis://h:1?client_name=a@b")
	require.NoError(t, err, "an @ elsewhere is no mistake")
	require.NoError(t, client.Close())
}

// A field that is not zero overrides the hub's, every other is taken from it: none can
// be forgotten.
func TestInheritCoversEveryField(t *testing.T) {
	t.Parallel()
	defaults := reflect.New(reflect.TypeFor[StreamChannelConfig]()).Elem()
	fill(defaults)
	full := defaults.Interface().(StreamChannelConfig)
	got := reflect.ValueOf(inherit(StreamChannelConfig{}, full))
	for i := range got.NumField() {
		require.False(t, got.Field(i).IsZero(), got.Type().Field(i).Name)
	}
	mine := StreamChannelConfig{MaxInFlight: 7, Tuning: Tuning{MinIdle: time.Minute}}
	merged := inherit(mine, full)
	require.Equal(t, 7, merged.MaxInFlight)
	require.Equal(t, time.Minute, merged.Tuning.MinIdle)
	require.Equal(t, full.Tuning.BlockTime, merged.Tuning.BlockTime, "the fields of Tuning count singly")
	require.Equal(t, full.ConsumerGroup, merged.ConsumerGroup)
	require.Equal(t, 7, mine.MaxInFlight)

	pubsub := reflect.New(reflect.TypeFor[PubSubChannelConfig]()).Elem()
	fill(pubsub)
	got = reflect.ValueOf(inherit(PubSubChannelConfig{}, pubsub.Interface().(PubSubChannelConfig)))
	for i := range got.NumField() {
		require.False(t, got.Field(i).IsZero(), got.Type().Field(i).Name)
	}
}

// fill gives every field a value that is not zero.
func fill(v reflect.Value) {
	for i := range v.NumField() {
		switch f := v.Field(i); f.Kind() {
		case reflect.String:
			f.SetString("x")
		case reflect.Int, reflect.Int64:
			f.SetInt(1000)
		case reflect.Uint8:
			f.SetUint(1)
		case reflect.Float64:
			f.SetFloat(1)
		case reflect.Bool:
			f.SetBool(true)
		case reflect.Func:
			f.Set(reflect.MakeFunc(f.Type(), func([]reflect.Value) []reflect.Value { return []reflect.Value{reflect.ValueOf("")} }))
		case reflect.Interface:
			for _, impl := range []any{JSON, WatermillMarshaler{}, EnvelopeMarshaler{}} {
				if reflect.TypeOf(impl).Implements(f.Type()) {
					f.Set(reflect.ValueOf(impl))
				}
			}
		case reflect.Struct:
			fill(f)
		}
	}
}

// Every wrong field is named, with the configuration that it belongs to.
func TestChannelConfigValidate(t *testing.T) {
	t.Parallel()
	for field, err := range map[string]error{
		"StreamChannelConfig.MaxLag":            StreamChannelConfig{MaxLag: -1}.Validate(),
		"StreamChannelConfig.MaxLen":            StreamChannelConfig{MaxLen: -1}.Validate(),
		"StreamChannelConfig.MaxInFlight":       StreamChannelConfig{MaxInFlight: -1}.Validate(),
		"StreamChannelConfig.MaxPayload":        StreamChannelConfig{MaxPayload: -2}.Validate(),
		"StreamChannelConfig.StartFrom":         StreamChannelConfig{StartFrom: AfterID("x")}.Validate(),
		"StreamChannelConfig.Tuning.MinIdle":    StreamChannelConfig{Tuning: Tuning{MinIdle: 1}}.Validate(),
		"StreamChannelConfig.Retention":         StreamChannelConfig{Retention: Retention{MaxLen: -1}}.Validate(),
		"StreamChannelConfig.PublishTimeout":    StreamChannelConfig{PublishTimeout: 1}.Validate(),
		"HubConfig.Stream.MaxLag":               HubConfig{Stream: StreamChannelConfig{MaxLag: -1}}.Validate(),
		"HubConfig.PubSub.Buffer":               HubConfig{PubSub: PubSubChannelConfig{Buffer: -1}}.Validate(),
		"PubSubChannelConfig.PublishTimeout":    PubSubChannelConfig{PublishTimeout: 1}.Validate(),
		"PubSubChannelConfig.Patterns":          PubSubChannelConfig{Patterns: true, Sharded: true}.Validate(),
		"ChannelConfig.DrainTimeout":            ChannelConfig[int]{DrainTimeout: 1}.Validate(),
		"ChannelConfig.Codec":                   ChannelConfig[func()]{}.Validate(),
		"redischannels: StreamChannelConfig.Ma": StreamChannelConfig{MaxLag: -1, MaxLen: -1}.Validate(),
	} {
		require.ErrorIs(t, err, ErrInvalidConfig, field)
		require.ErrorContains(t, err, field)
	}
	problems := StreamChannelConfig{MaxPayload: -2}.Validate().(interface{ Unwrap() []error }).Unwrap()
	require.Len(t, problems, 1, "each is told once")
	require.NoError(t, StreamChannelConfig{}.Validate())
	require.NoError(t, PubSubChannelConfig{}.Validate())
	require.NoError(t, HubConfig{}.Validate())
	require.NoError(t, ChannelConfig[int]{}.Validate())
}

// What a type cannot be is found when the channel is made, however deep it lies.
func TestJSONTypes(t *testing.T) {
	t.Parallel()
	type tree struct {
		Left, Right *tree
		hidden      chan int
		Skipped     func() `json:"-"`
		When        time.Time
		Any         any
	}
	_ = tree{hidden: nil}
	for _, good := range []any{map[time.Time]int{}, map[uint8]int{}, 1, "", []byte(nil), tree{}, &tree{}, map[string]tree{}, [2]int{}, time.Time{}} {
		require.NoError(t, checkJSONType(reflect.TypeOf(good), nil), "%T", good)
	}
	require.NoError(t, checkJSONType(reflect.TypeFor[any](), nil))
	for _, bad := range []reflect.Type{
		reflect.TypeFor[func()](), reflect.TypeFor[chan int](), reflect.TypeFor[complex128](), reflect.TypeFor[fmt.Stringer](),
		reflect.TypeFor[map[float64]int](), reflect.TypeFor[map[any]int](), reflect.TypeFor[map[struct{ A int }]int](),
		reflect.TypeFor[[]map[string]*chan int](), reflect.TypeFor[struct{ A struct{ B func() } }](),
	} {
		require.Error(t, checkJSONType(bad, nil), bad)
	}
	err := checkJSONType(reflect.TypeFor[struct{ A struct{ B func() } }](), nil)
	require.ErrorContains(t, err, "field A: field B: ")
}

// The errors of decoding have nothing of what was read.
func TestDecodeErrorsHaveNoPayload(t *testing.T) {
	t.Parallel()
	type card struct{ Number int }
	code, err := newCoder[card](nil)
	require.NoError(t, err)
	for _, payload := range []string{strings.Repeat(" ", 100) + "null" + strings.Repeat("\n", 100), `{"Number":"4111"}`, `4111`, `{"Number":4111`, `"4111"`, `{"Number":4111.5}`, "", "null"} {
		_, err := code.value(message.NewMessage("u", []byte(payload)))
		var failure *DecodeError
		require.ErrorAs(t, err, &failure)
		require.NotContains(t, err.Error(), "4111", payload)
		require.Equal(t, "u", failure.EntryID)
	}
	strict, err := newCoder[card](StrictJSON)
	require.NoError(t, err)
	for _, payload := range []string{`{"Other":1}`, `{"Number":1}{}`, `{"Number":1} x`} {
		_, err := strict.value(message.NewMessage("u", []byte(payload)))
		require.Error(t, err, payload)
		_, err = code.value(message.NewMessage("u", []byte(`{"Number":1,"Other":2}`)))
		require.NoError(t, err)
	}
}

type panickyCodec struct{}

func (panickyCodec) Encode(any) ([]byte, error) { panic("secret") }
func (panickyCodec) Decode([]byte, any) error   { panic("secret") }

// A codec that panics makes an error of one value, not the end of the process.
func TestCodecPanics(t *testing.T) {
	t.Parallel()
	code, err := newCoder[int](panickyCodec{})
	require.NoError(t, err)
	v := 1
	_, err = code.message(&v, nil)
	require.ErrorContains(t, err, "panicked")
	_, err = code.value(message.NewMessage("u", nil))
	var failure *DecodeError
	require.ErrorAs(t, err, &failure)
	require.NotContains(t, err.Error(), "secret")
}

// The codecs are constants: they can be compared, printed, and cannot be replaced.
func TestBasicCodec(t *testing.T) {
	t.Parallel()
	const named = JSON
	require.Equal(t, StreamChannelConfig{Codec: named}, StreamChannelConfig{Codec: JSON})
	require.NotEqual(t, StreamChannelConfig{Codec: JSON}, StreamChannelConfig{Codec: StrictJSON})
	type text string
	for _, test := range []struct {
		codec BasicCodec
		value any // a pointer
		data  string
	}{
		{JSON, &map[string]int{"a": 1}, `{"a":1}`},
		{StrictJSON, &map[string]int{"a": 1}, `{"a":1}`},
		{Bytes, &[]byte{'a', 0}, "a\x00"},
		{Bytes, &json.RawMessage{'1'}, "1"},
		{String, new(text), ""},
	} {
		require.NoError(t, test.codec.CheckType(reflect.TypeOf(test.value).Elem()))
		data, err := test.codec.Encode(test.value)
		require.NoError(t, err)
		require.Equal(t, test.data, string(data))
		got := reflect.New(reflect.TypeOf(test.value).Elem())
		require.NoError(t, test.codec.Decode(data, got.Interface()))
		require.EqualValues(t, test.value, got.Interface())
	}
	unknown := BasicCodec("YAML")
	_, err := unknown.Encode(new(int))
	for _, err := range []error{err, unknown.Decode(nil, new(int)), unknown.CheckType(reflect.TypeFor[int]())} {
		require.ErrorContains(t, err, `must be JSON, StrictJSON, Bytes or String, got BasicCodec("YAML")`)
	}
}
