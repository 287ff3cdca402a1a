// Package ws serves the streams of package sse over WebSocket, for clients and proxies that do
// not support Server-Sent Events. It is a separate package so that others do not depend on a
// WebSocket library.
//
// A [Handler] wraps an sse.Handler or an sse.RunsHandler and uses its ring, IDs, gaps, filters
// and limits: clients of both kinds share one connection to Redis. An event that was sent over
// WebSocket is kept in both forms, so it counts twice for Options.BufferBytes. Each event is a
// text message with one JSON object:
//
//	{"id":"1700000000000-0","event":"message.sent","data":{"from":"ann","text":"hello"}}
//
// id and event are omitted if an event has none. data is the data of the event if that is JSON,
// and otherwise a string. An object with only an id is the position up to which the client has
// received all events.
//
// A client that reconnects sends the last id in the URL parameter Options.LastEventIDParam
// (lastEventId), because a browser cannot set headers of a WebSocket:
//
//	const socket = new WebSocket(`/runs/chat-42/ws?lastEventId=${encodeURIComponent(last)}`);
//
// The server closes a connection with status 1000 after the end of a stream, with [CloseNothing]
// if there is no stream, with 1013 for a client that is too slow, and otherwise with 1001, after
// which the client should reconnect. A client that sends a message is closed with 1008. A refused
// request gets its status before the connection is upgraded, as in package sse; a browser does
// not report this status to the page.
//
// Heartbeats are pings, which detect clients that have disappeared. Origins other than the host
// of the request are refused unless Options.OriginPatterns lists them.
package ws
