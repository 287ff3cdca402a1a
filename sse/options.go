package sse

import (
	"errors"
	"fmt"
	"log"
	"net/http"
	"time"

	"github.com/flaminco/redischannels"
)

// Defaults of [Options].
const (
	DefaultHeartbeat        = 15 * time.Second
	DefaultRetry            = 2 * time.Second
	DefaultWriteTimeout     = 10 * time.Second
	DefaultMaxClients       = 10_000
	DefaultPubSubBuffer     = 1024
	DefaultBufferBytes      = 8 << 20
	DefaultLastEventIDParam = "lastEventId"
)

// Values that turn something off.
const (
	// NoHeartbeat as Options.Heartbeat sends nothing to idle clients. Proxies may then
	// close their connections, and clients that disappear are noticed only by the next event.
	NoHeartbeat time.Duration = -1
	// NoRetry as Options.Retry leaves it to the client when it reconnects.
	NoRetry time.Duration = -1
	// UnlimitedClients as Options.MaxClients leaves the bound to the system.
	UnlimitedClients = -1
	// NoLastEventIDParam as Options.LastEventIDParam takes only the header.
	NoLastEventIDParam = "-"
)

// Names of the events that a [Handler] sends besides those of values.
const (
	// EventGap reports entries that the client has not seen and never will, because
	// they were trimmed away, or of a stream that was deleted and has started again. Its
	// data is a [Gap] as JSON.
	EventGap = "gap"
	// EventUndecodable stands in the place of an entry that makes no value or no event.
	// Its data is an [Undecodable] as JSON. Options.OnError gets the reason.
	EventUndecodable = "undecodable"
)

// Gap is the data of EventGap.
type Gap struct {
	From string `json:"from"`         // entry ID that the client had come to
	To   string `json:"to,omitempty"` // ID of the first entry that is left, if one is
}

// Undecodable is the data of EventUndecodable.
type Undecodable struct {
	ID string `json:"id,omitempty"` // of the entry, where the transport has one
}

// Options configures a [Handler]. The zero value works. All functions are called from
// several goroutines at once.
type Options[T any] struct {
	// Start is where a client begins that comes without the ID of its last event:
	// Oldest, Since an hour ago, AfterID. It is called once per request. A position that
	// is trimmed away begins with EventGap. Nil, and the zero Position, mean Latest, and
	// so must it for channels of which nothing is kept. AfterID of what is no ID answers
	// the request with 400.
	Start func(*http.Request) redischannels.Position

	// Event returns the name of a value's event, one line. Empty means none, which is
	// "message" for a browser. EventGap, EventUndecodable, EventStart and EventEnd are refused: the value
	// is sent as undecodable. Defaults to none.
	Event func(redischannels.Delivery[T]) string

	// Encode returns the data of a value's event: UTF-8, in which each of CR LF, CR and
	// LF comes out as LF. It is called once per value, not per client, and must neither
	// change nor keep the value. Defaults to the value as JSON.
	Encode func(redischannels.Delivery[T]) ([]byte, error)

	// Authorize refuses a request by an error: 401 if it wraps ErrUnauthorized, 403
	// otherwise. The client does not get its text. It is asked once; who may see the stream
	// for a time gets a request whose context ends with it. Defaults to all clients.
	Authorize func(*http.Request) error

	// Filter returns what decides which values the client of a request is sent; nil is
	// all. The function that it returns is called by one goroutine per value and client,
	// and must not change the value, which clients share. Other events are always sent.
	// Defaults to all.
	Filter func(*http.Request) func(redischannels.Delivery[T]) bool

	// LastEventIDParam is the parameter of the URL that has the ID of the last event, for
	// clients that cannot set the header Last-Event-ID, such as a browser that opens a
	// page again. The header precedes it. Defaults to DefaultLastEventIDParam;
	// NoLastEventIDParam turns it off.
	LastEventIDParam string

	// Heartbeat is after how much silence a client is sent a comment, at least 1 ms. It
	// also sends the ID up to which Filter has passed nothing. Too low costs traffic; too
	// high lets proxies close the connection (mostly after 30 to 60 s). Defaults to
	// DefaultHeartbeat; NoHeartbeat turns it off.
	Heartbeat time.Duration

	// Retry is after how long a client reconnects, at least 1 ms, sent as `retry:`, and
	// in Retry-After of a refusal. Defaults to DefaultRetry; NoRetry turns it off.
	Retry time.Duration

	// WriteTimeout is how long a client may take none of what is written to it, at least
	// 1 ms, before its connection is closed. It also bounds how long Close waits for such
	// a client. It takes the place of http.Server.WriteTimeout. Defaults to
	// DefaultWriteTimeout.
	WriteTimeout time.Duration

	// MaxClients is how many clients are served at once; more are answered 503. Defaults
	// to DefaultMaxClients; UnlimitedClients turns it off.
	MaxClients int

	// Buffer and BufferBytes are how many events, and bytes of them, are kept for all
	// clients together. A client that is further behind is closed and resumes from Redis;
	// one that reconnects within them costs Redis nothing. Default to DefaultPubSubBuffer and
	// DefaultBufferBytes.
	Buffer      int
	BufferBytes int

	// OnError gets the errors that no caller can get: what Redis answers, an entry that cannot be
	// decoded, a value that Event or Encode fails for, a ResponseWriter that cannot flush,
	// and, by an error that wraps ErrSlowClient, a client that was closed for its slowness.
	// It must return soon and must not call Close. Outages and gaps are events of the hub
	// as well. A panic in it is recovered, and logged by the package log. Defaults to none.
	OnError func(error)
}

// Validate reports every problem of the options in one joined error. Each names its
// field and wraps [redischannels.ErrInvalidConfig].
func (o Options[T]) Validate() error {
	var errs []error
	add := func(field, format string, args ...any) {
		errs = append(errs, fmt.Errorf("redischannels/sse: Options.%s: %w: %s", field, redischannels.ErrInvalidConfig, fmt.Sprintf(format, args...)))
	}
	duration := func(field string, d, off time.Duration) {
		if d != 0 && d != off && d < time.Millisecond {
			add(field, "must be at least 1ms, got %v", d)
		}
	}
	duration("Heartbeat", o.Heartbeat, NoHeartbeat)
	duration("Retry", o.Retry, NoRetry)
	duration("WriteTimeout", o.WriteTimeout, 0)
	if o.MaxClients < 0 && o.MaxClients != UnlimitedClients {
		add("MaxClients", "must be above 0, or UnlimitedClients, got %d", o.MaxClients)
	}
	if o.Buffer < 0 {
		add("Buffer", "must be above 0, got %d", o.Buffer)
	}
	if o.BufferBytes < 0 {
		add("BufferBytes", "must be above 0, got %d", o.BufferBytes)
	}
	return errors.Join(errs...)
}

// withDefaults returns the options with what is meant by their zero fields.
func (o Options[T]) withDefaults() Options[T] {
	o.Heartbeat = orDefault(o.Heartbeat, DefaultHeartbeat)
	o.Retry = orDefault(o.Retry, DefaultRetry)
	o.WriteTimeout = orDefault(o.WriteTimeout, DefaultWriteTimeout)
	o.MaxClients = orDefault(o.MaxClients, DefaultMaxClients)
	o.Buffer = orDefault(o.Buffer, DefaultPubSubBuffer)
	o.BufferBytes = orDefault(o.BufferBytes, DefaultBufferBytes)
	o.LastEventIDParam = orDefault(o.LastEventIDParam, DefaultLastEventIDParam)
	o.OnError = guard(o.OnError)
	return o
}

// guard makes an OnError that recovers a panic in it: in the goroutine of a broadcast or
// of a page nothing else could.
func guard(onError func(error)) func(error) {
	if onError == nil {
		return func(error) {}
	}
	return func(err error) {
		defer func() {
			if v := recover(); v != nil {
				log.Printf("redischannels/sse: OnError panicked: %v", v) // as net/http does
			}
		}()
		onError(err)
	}
}

func orDefault[V comparable](v, fallback V) V {
	var zero V
	if v == zero {
		return fallback
	}
	return v
}
