// Package redisconn provides what every part of the library needs to talk to Redis
// beside the caller's own use of the client, each mechanism once:
//
//   - [Conn], a client with a single connection of its own, whose blocking command
//     can be woken, and [Control], a small client of its own for short commands
//   - commands that go-redis never sends again ([Tracker], [Gate])
//   - RESP reading: [Parser] for replies in memory, [Walk] for the end of a reply
//     that is still arriving, [Decoder] for a connection
//   - the meaning of error replies ([Classify])
//   - hash slots and the masters of a Redis Cluster ([Slot], [Master])
//
// It knows nothing about streams or Pub/Sub, and imports neither.
package redisconn
