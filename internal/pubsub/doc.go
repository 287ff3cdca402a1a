// Package pubsub keeps a set of Redis Pub/Sub names subscribed across outages and
// delivers each message to the subscribers of its name; it also publishes, each message
// at most once.
//
// [Mux] is the subscribing side. It implements the wire protocol itself on connections that
// go-redis has dialed and logged in: a subscription needs to know the command of an error, the
// time of the last data from the server, and that go-redis does not subscribe again by itself.
//
// A Mux has one lock. It is never held during network operations or calls of foreign code. The
// lock of a [Queue] may be taken under it, never the other way round.
package pubsub
