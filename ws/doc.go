// Package ws serves the streams of package sse over WebSocket, for clients and proxies that Server-Sent
// Events do not suit. It is a package of its own so that others do not depend on a WebSocket library.
//
// A [Handler] stands in front of an sse.Handler or an sse.RunsHandler and uses its ring, IDs, gaps,
// filters and bounds: clients of both kinds share one connection to Redis. An event that was sent over
// WebSocket is kept in both forms, so it takes twice its part of Options.BufferBytes. Each event is a text message
// with one JSON object:
//
//	{"id":"1700000000000-0","event":"message.sent","data":{"from":"ann","text":"hello"}}
//
// id and event are left out where an event has none. data is the data of the event if that is JSON, and
// otherwise a string. An object with an id alone says up to where the client has seen everything.
//
// A client that comes back gives the last id in the parameter of the URL that is Options.LastEventIDParam
// (lastEventId), since a browser cannot set headers of a WebSocket:
//
//	const socket = new WebSocket(`/runs/chat-42/ws?lastEventId=${encodeURIComponent(last)}`);
//
// The server closes a connection with 1000 after the end of a stream, with [CloseNothing] where there is
// nothing to see, with 1013 for a client that is too slow, and with 1001 otherwise: then the client comes
// back. A client that sends a message is closed with 1008. Requests that are refused are answered before
// the connection is upgraded, as package sse does; a browser does not see how.
//
// Heartbeats are pings, which find clients that have disappeared. Origins other than the host of the
// request are refused unless Options.OriginPatterns has them.
package ws
