// Package sse streams a [redischannels.Channel] to browsers as Server-Sent Events.
//
// A [Handler] is an [http.Handler] for one channel. What is written to the channel, by
// whatever process, is an event at every client:
//
//	id: 1700000000000-0
//	event: message.sent
//	data: {"from":"ann","text":"hello"}
//
// The id is the entry ID in the stream, the name is what Options.Event says, the data is the
// value as JSON or what Options.Encode makes of it.
//
// # Resuming
//
// A browser that loses its connection comes back by itself with the ID of the last event
// that it has seen, in the header Last-Event-ID, and gets what it has missed, from the
// stream, without gap or repetition: at this process or another one. Clients that cannot set
// the header have a parameter of the URL. A client without an ID begins where Options.Start
// says, by default with what is written from now on, and is sent its position at once: by an
// `id:` without data, of which browsers take notice without an event for the page. Heartbeats
// carry it on while Options.Filter lets nothing pass.
//
// What a client has not seen and never will, because the stream was trimmed, is reported by
// [EventGap] in its place; it continues behind. It may report a gap where only the client's
// last entry was trimmed: Redis does not say what it has removed. The same event reports that
// the stream was deleted and has started again, which the client then gets from its beginning.
// An entry that makes no event is [EventUndecodable]. Nothing is left out in silence.
//
// Pub/Sub channels have no past: no IDs, no resuming, Latest as the only start. What is
// published while the connection to Redis is lost is lost, which only an event of the hub
// reports. When a response has begun the client is live, unless Redis took longer than a second
// to answer.
//
// # Runs
//
// [Runs] are streams that begin, are written by one writer, and end: the answer of a model, the
// progress of a job. See docs/runs.md, which has the code for browsers too. The stream of a channel
// may end as well, by [redischannels.Writer.CompleteStream]: clients get [EventEnd], and those that
// come back behind it are answered 204.
//
// # What it costs
//
// While clients are connected one goroutine of the Handler follows the channel, decodes and
// encodes each entry once, and keeps the latest of them in a ring. A client is the goroutine
// that net/http serves its request in, with a place in the ring. All handlers of a hub whose
// channels have equal settings read by one connection, whatever the number of streams (up to
// 256) and clients. No consumer group is made. Who resumes within the ring costs Redis
// nothing; who comes from further behind reads pages of the stream, a few clients at a time.
//
// A client that is slow holds up no other: if it takes nothing for Options.WriteTimeout, or if
// the ring runs away from it, its connection is closed. It comes back with the ID that it has
// come to, and goes on from Redis.
//
// # Outages
//
// While Redis is away clients stay connected, with heartbeats, and new ones may come. When it
// is back all of them resume where they were. Only a client that comes during an outage, has no
// ID and is the first one begins when Redis is back.
//
// # Serving
//
// Write deadlines are the Handler's own, so http.Server.WriteTimeout and ReadTimeout do not
// end a stream; they may be set for other requests. Middleware that wraps the ResponseWriter
// needs a method Unwrap or Flush. The headers keep caches, nginx and compression from holding
// events back. Serve HTTP/2 where you can: browsers open only six connections of HTTP/1.1 to
// one server, and every stream takes one.
//
// A request that is refused is answered 400 for a malformed ID, 401 or 403 by
// Options.Authorize, 405 for methods other than GET and HEAD, 500 where nothing can be
// flushed, 503 beyond Options.MaxClients and after Close, with Retry-After. A browser's
// EventSource does not come back after any of these by itself: the page must make another
// one.
//
// http.Server.Shutdown waits for requests, and streams have no end of their own, so let it
// close the Handler:
//
//	server.RegisterOnShutdown(func() { handler.Close() })
//
// Browsers send cookies with an EventSource also across sites if the server allows the origin
// (CORS). The Handler sets no such header; Authorize is the place to check Origin.
package sse
