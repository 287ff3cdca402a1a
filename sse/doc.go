// Package sse streams a [redischannels.Channel] to browsers as Server-Sent Events.
//
// A [Handler] is an [http.Handler] for one channel. Every value that any process writes to the
// channel is sent to every client as an event:
//
//	id: 1700000000000-0
//	event: message.sent
//	data: {"from":"ann","text":"hello"}
//
// The id is the entry ID in the stream, the name is that of Options.Event, and the data is the
// value as JSON or the result of Options.Encode.
//
// # Resuming
//
// A browser that loses its connection reconnects by itself, to this process or another one, with
// the ID of its last event in the header Last-Event-ID. It then receives the missed events from
// the stream, without gaps or repetitions. Clients that cannot set the header use a parameter of
// the URL. A client without an ID begins at Options.Start, by default with the values written
// from then on. It receives its position at once, as an `id:` without data, which browsers store
// without an event for the page. Heartbeats update the position while Options.Filter rejects all
// values.
//
// Entries that were trimmed before the client received them are reported by [EventGap] in their
// place; the client continues with the entries behind the gap. A gap may be reported although
// only the client's own last entry was trimmed, because Redis does not report which entries it
// has removed. The same event reports that the stream was deleted and re-created; the client then
// receives it from its beginning. An entry without an event is reported by [EventUndecodable]. No
// entry is omitted without a report.
//
// Pub/Sub channels have no history: no IDs, no resuming, Latest as the only start. Values
// published while the connection to Redis is lost are lost, which only an event of the hub
// reports. When a response has begun the client is live, unless Redis took longer than a second
// to reply.
//
// # Runs
//
// [Runs] are streams that begin, are written by one writer, and end, such as the answer of a
// model or the progress of a job. docs/runs.md describes them and has the code for browsers. The
// stream of a channel may end too, by [redischannels.Writer.CompleteStream]: clients receive
// [EventEnd], and status 204 if they reconnect after it.
//
// # Costs
//
// While clients are connected, one goroutine of the Handler follows the channel, decodes and
// encodes each entry once, and keeps the latest entries in a ring. A client is the goroutine in
// which net/http serves its request, with a position in the ring. All handlers of a hub whose
// channels have equal settings share one connection for reading, for up to 256 streams and any
// number of clients. No consumer group is created. A client that resumes within the ring costs no
// command; a client that is further behind reads pages of the stream, a few clients at a time.
//
// A slow client does not delay others: if it reads nothing for Options.WriteTimeout, or falls
// behind the ring, its connection is closed. It reconnects with the ID of its last event and
// resumes from Redis.
//
// # Outages
//
// While Redis cannot be reached, clients stay connected, with heartbeats, and new ones can
// connect. After the outage all of them resume at their positions. Only the first client, if it
// connects without an ID during the outage, begins when Redis can be reached again.
//
// # Serving
//
// The Handler sets its own write deadlines, so http.Server.WriteTimeout and ReadTimeout do not
// end a stream; they may be set for other requests. Middleware that wraps the ResponseWriter
// needs a method Unwrap or Flush. The response headers prevent caches, nginx and compression from
// buffering events. Serve HTTP/2 if possible: browsers open at most six HTTP/1.1 connections to
// one server, and every stream uses one.
//
// A refused request gets status 400 for an invalid ID, 401 or 403 by Options.Authorize, 405 for
// methods other than GET and HEAD, 500 if the ResponseWriter cannot flush, and 503 with
// Retry-After beyond Options.MaxClients and after Close. A browser's EventSource does not
// reconnect after any of these: the page must create another one.
//
// http.Server.Shutdown waits for requests, and streams do not end by themselves, so close the
// Handler on shutdown:
//
//	server.RegisterOnShutdown(func() { handler.Close() })
//
// Browsers send cookies with an EventSource across sites if the server allows the origin (CORS).
// The Handler sets no such header; check Origin in Authorize.
package sse
