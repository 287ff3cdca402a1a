// Package redisconn provides the mechanisms with which the library uses Redis beside the caller's
// own use of the client:
//
//   - [Conn], a client with a single connection, whose blocking command can be ended, and
//     [Control], a small client for short commands
//   - commands that go-redis never sends again ([Tracker], [Gate])
//   - RESP reading: [Parser] for replies in memory, [Walk] for the end of a reply
//     that is still arriving, [Decoder] for a connection
//   - the kinds of error replies ([Classify])
//   - hash slots and the masters of a Redis Cluster ([Slot], [Master])
//
// It is independent of streams and Pub/Sub, and imports neither.
package redisconn
