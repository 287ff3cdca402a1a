// Package redischannels implements Watermill's Publisher and Subscriber over Redis Streams and over
// Redis Pub/Sub.
//
// # Transports
//
// A topic is a Redis stream, a key that holds a log of entries. A [Publisher] appends
// messages to it. A [Subscriber] reads it in one of two ways:
//
//   - in a consumer group, with SubscriberConfig.ConsumerGroup: each message is delivered to one
//     consumer of the group, which acknowledges it; Redis stores the state of the group;
//   - as fan-out, without a group: each subscription receives every message, from any [Position];
//     Redis stores no state for it.
//
// With Pub/Sub a topic is a channel, and Redis stores nothing: a message of a [PubSubPublisher]
// reaches each [PubSubSubscriber] that is subscribed when it is published. Topics may be
// patterns, or shard channels of a cluster.
//
// [Subscriber.History] reads past messages; its loop ends at the end of the stream.
// [DeadLetters] lists, requeues and deletes dead letters. The wire format is a [Marshaler] and
// an [Unmarshaler]: [WatermillMarshaler], the default, writes the format of
// watermill-redisstream; [FlamincoMarshaler] that of the .NET library; [FieldsMarshaler] reads
// and writes flat fields, such as those of redis-cli. The format of Pub/Sub is a
// [PubSubMarshaler] and a [PubSubUnmarshaler]: [EnvelopeMarshaler], the default, or
// [RawPayload].
//
// # Typed channels
//
// A [Hub] opens channels of values over these transports: [NewStreamChannel] and
// [NewPubSubChannel], and [NewChannel] over any other Watermill Pub/Sub. A [Channel] has a
// [Writer] and a [Reader]. Each method of a Reader has one rule of acknowledgement: All
// acknowledges a value when the loop asks for the next one, Handle when the function returns
// nil, HandleBatch all values of a call together, Receive leaves it to the caller, Read
// acknowledges at once. History and Follow read without acknowledging. An [EventBus] carries
// several types by the names of a [Registry]. [HandlerFunc] and [ProducerHandlerFunc] turn
// functions of values into handlers of a Watermill router. Package sse streams a Channel to
// browsers.
//
// # Delivery guarantees
//
//	           consumer group                      fan-out                        Pub/Sub
//	delivery   at least once while retained        at least once while retained   at most once
//	ack        the entry leaves the group          the reader continues           the next message
//	nack       again after a back-off, counted,    again after a back-off,        the same,
//	           dead-lettered after MaxDeliveries   skipped after MaxDeliveries    from memory
//	order      MaxInFlight 1: stream order;        stream order                   order of arrival
//	           OrderingKey: per key; else none
//	crash      another consumer claims it          resume from the last ID kept   lost
//	slow       leases only its own share           reads at its own pace          counted drops
//
// The order is that within one subscription. No message is lost without a report: an entry leaves
// a group by an ack, by an atomic move to the dead-letter stream, or because Redis no longer has
// it, which an [Event] reports with its ID. docs/guarantees.md states the assumptions, and which
// messages can be delivered twice.
//
// # The life of a message
//
// Publish marshals all messages, then appends up to 500 of them in one transaction. It returns
// when Redis has confirmed them, or a [PublishError] with the [Outcome] of each. A command that
// may have been executed is never sent again.
//
// A subscription reads entries in batches, as many as its handlers finish in about 100 ms, and
// delivers them one by one. At most MaxInFlight of them are unacknowledged. The context of a
// message carries its entry ID, topic, group and delivery count ([EntryIDFromContext] and similar
// functions). It ends when the message is acknowledged or nacked, or when another consumer owns
// the entry. The lease of an entry that is buffered or in flight is renewed every third of
// Tuning.MinIdle, so a handler may run for any time.
//
// Ack removes the entry from the group, many with one command when there are many. Nack
// redelivers it after NackBackoff, or after the delay of [RetryAfter]. After MaxDeliveries, or at
// once with [Reject], the message is moved to the dead-letter stream with its reason. If the
// process crashes, another consumer claims the entry after MinIdle. The delivery in the crashed
// process counts, so a message that crashes every process is dead-lettered too.
//
// # Delayed messages
//
// A message with the metadata of Watermill's components/delay, or one of [Writer.WriteAt], is
// stored in Redis until it is due. Subscriptions in a group, Publishers and [Housekeeper] append
// due messages. Package schedule publishes at given times, once or by a cron expression.
//
// # Connections and goroutines
//
// The caller owns the Redis client; it is never closed. Blocking reads do not use its pool. Each
// subscription in a group opens its own connection with the client's options. Subscriptions
// without a group share one connection per 256 topics (in Redis Cluster per hash slot). On a Hub
// all Readers without a group and all loops over Follow share it, if their settings are equal. A
// subscription has a few goroutines, and with MaxInFlight above 1 one for each message in flight;
// docs/architecture.md lists them with their owners. Constructors start no goroutine and do not
// use the network: the first round trip is in Subscribe or Publish, which return its error.
// Publisher, Subscriber and DeadLetters are safe for concurrent use, and so are the Pub/Sub
// types. All subscriptions of a PubSubSubscriber share one connection, with shard channels one
// per node.
//
// # Shutdown
//
// [Subscriber.Close], or the end of the context of Subscribe for one subscription, stops
// fetching, releases undelivered entries, lets handlers finish for up to Tuning.DrainTimeout,
// writes their acknowledgements and closes the channel. It is bounded and leaves neither
// goroutines nor connections. Nothing else ends a subscription: after an outage, which is
// reported to SubscriberConfig.OnEvent, it resumes. [Publisher.Close] waits for running calls.
//
// # Compatibility
//
// Redis 6.2 or newer, Valkey 7.2 or newer, with scripting allowed; one server, Sentinel and
// Cluster through go-redis v9. Streams can be shared with watermill-redisstream, and package
// compat converts its configurations to those of this package.
package redischannels
