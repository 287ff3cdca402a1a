// Package pubsub keeps a set of Redis Pub/Sub names subscribed across outages and
// delivers each message to the subscribers of its name; it also publishes, each message
// at most once.
//
// [Mux] is the subscribing side. It speaks the wire protocol itself on connections
// that go-redis has dialled and logged in: a subscription needs to know which
// command an error answers, when the server was last heard of, and that nothing
// subscribes again behind its back.
//
// A Mux has one lock. Under it nothing waits: no network, no caller's code. The
// lock of a [Queue] may be taken under it, never the other way round.
package pubsub
