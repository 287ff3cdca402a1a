package feed

import (
	"context"
	"net/http"
	"time"

	"github.com/flaminco/redischannels/internal/stream"
)

// Transport serves one client. It replaces the response of Server-Sent Events if the context of a
// request has one.
type Transport interface {
	Output
	// None replies that there is no stream, instead of Open.
	None()
	// End ends the response that Open has begun, because of an error of [Feed.Serve].
	End(err error)
}

// Request is the request of a Transport.
type Request struct {
	Writer       http.ResponseWriter
	HTTP         *http.Request
	ID           func(stream.ID) string // the text of an ID
	First        []byte                 // the event that Open writes, or empty
	WriteTimeout time.Duration
	Cancel       context.CancelFunc // ends the client
	Life         context.Context    // of the handler
}

type transportKey struct{}

// WithTransport returns a context in which clients are served by another transport.
func WithTransport(ctx context.Context, transport func(Request) Transport) context.Context {
	return context.WithValue(ctx, transportKey{}, transport)
}

// TransportOf returns the transport of a context, or nil.
func TransportOf(ctx context.Context) func(Request) Transport {
	transport, _ := ctx.Value(transportKey{}).(func(Request) Transport)
	return transport
}
