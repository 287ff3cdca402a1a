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
	// NoHeartbeat as Options.Heartbeat sends nothing to idle clients. Proxies may then close
	// their connections, and clients that disappear are detected only by the next event.
	NoHeartbeat time.Duration = -1
	// NoRetry as Options.Retry leaves the reconnection time to the client.
	NoRetry time.Duration = -1
	// UnlimitedClients as Options.MaxClients sets no limit.
	UnlimitedClients = -1
	// NoLastEventIDParam as Options.LastEventIDParam accepts only the header.
	NoLastEventIDParam = "-"
)

// Names of the events that a [Handler] sends besides those of values.
const (
	// EventGap reports entries that were trimmed before the client received them, or that the
	// stream was deleted and re-created. Its data is a [Gap] as JSON.
	EventGap = "gap"
	// EventUndecodable reports, in its place, an entry that cannot be decoded or encoded as an
	// event. Its data is an [Undecodable] as JSON. Options.OnError receives the reason.
	EventUndecodable = "undecodable"
)

// Gap is the data of EventGap.
type Gap struct {
	From string `json:"from"`         // entry ID of the client's position
	To   string `json:"to,omitempty"` // ID of the first remaining entry, if any
}

// Undecodable is the data of EventUndecodable.
type Undecodable struct {
	ID string `json:"id,omitempty"` // of the entry, if the transport has IDs
}

// Options configures a [Handler]. The zero value is valid. All functions must be safe for
// concurrent use.
type Options[T any] struct {
	// Start returns the position of a client without the ID of its last event: Oldest, Since an
	// hour ago, AfterID. It is called once per request. If entries after the position were
	// trimmed, the stream begins with EventGap. Nil, and the zero Position, mean Latest, the only
	// position for transports that store no messages. For an invalid ID in AfterID the request
	// gets status 400.
	Start func(*http.Request) redischannels.Position

	// Event returns the name of a value's event, one line. Empty means none, which is "message"
	// for a browser. EventGap, EventUndecodable, EventStart and EventEnd are reserved: the value
	// is then sent as undecodable. Defaults to none.
	Event func(redischannels.Delivery[T]) string

	// Encode returns the data of a value's event, in UTF-8; clients receive CR LF and CR as LF.
	// It is called once per value, not per client, and must neither change nor keep the value.
	// Defaults to the value as JSON.
	Encode func(redischannels.Delivery[T]) ([]byte, error)

	// Authorize refuses a request by an error: with status 401 if it wraps ErrUnauthorized, and
	// 403 otherwise. The client does not receive its text. It is called once per request; to
	// limit access in time, set a context on the request that ends with it. Defaults to all
	// clients.
	Authorize func(*http.Request) error

	// Filter returns a function that selects the values for the client of a request; nil selects
	// all. That function is called from one goroutine for each value and client, and must not
	// change the value, which clients share. Other events are always sent. Defaults to all.
	Filter func(*http.Request) func(redischannels.Delivery[T]) bool

	// LastEventIDParam is the parameter of the URL that has the ID of the last event, for clients
	// that cannot set the header Last-Event-ID, such as a browser that reopens a page. The header
	// has precedence. Defaults to DefaultLastEventIDParam; NoLastEventIDParam turns it off.
	LastEventIDParam string

	// Heartbeat is the idle time after which a client is sent a comment, at least 1 ms. It also
	// sends the ID of the last value that Filter has rejected. Too low costs traffic; too high
	// lets proxies close the connection (usually after 30 to 60 s). Defaults to DefaultHeartbeat;
	// NoHeartbeat turns it off.
	Heartbeat time.Duration

	// Retry is the time after which a client reconnects, at least 1 ms. It is sent as `retry:`,
	// and as Retry-After of a refusal. Defaults to DefaultRetry; NoRetry turns it off.
	Retry time.Duration

	// WriteTimeout is the time after which the connection of a client that reads nothing is
	// closed, at least 1 ms. It also bounds how long Close waits for such a client. It replaces
	// http.Server.WriteTimeout. Defaults to DefaultWriteTimeout.
	WriteTimeout time.Duration

	// MaxClients is the maximum number of clients; further ones get status 503. Defaults to
	// DefaultMaxClients; UnlimitedClients turns it off.
	MaxClients int

	// Buffer and BufferBytes are the number and the size of the events that are kept for all
	// clients together. A client that is further behind is closed and resumes from Redis; a
	// client that reconnects within them costs no command. They default to DefaultPubSubBuffer
	// and DefaultBufferBytes.
	Buffer      int
	BufferBytes int

	// OnError receives errors that are not returned to a caller: errors of Redis, an entry that
	// cannot be decoded, a value for which Event or Encode fails, a ResponseWriter that cannot
	// flush, and, by an error that wraps ErrSlowClient, a slow client that was closed. It must
	// return soon and must not call Close. Outages and gaps are also events of the hub. A panic
	// in it is recovered, and logged by the package log. Defaults to none.
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

// withDefaults returns a copy in which zeros are replaced.
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

// guard returns an OnError that recovers a panic: no caller in the goroutine of a broadcast or of
// a page recovers it.
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
