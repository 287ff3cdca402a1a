// Package redischannels has Watermill's Publisher and Subscriber over Redis Streams and over
// Redis Pub/Sub.
//
// # Transports
//
// A topic is a Redis stream, a key that holds a log of entries. A [Publisher] appends
// messages to it. A [Subscriber] reads it in one of two ways:
//
//   - in a consumer group, with SubscriberConfig.ConsumerGroup: each message goes to one
//     consumer of the group, which acknowledges it, and Redis keeps account;
//   - as fan-out, without: each subscription sees every message, from any [Position], and
//     Redis keeps nothing for it.
//
// With Pub/Sub a topic is a channel, and Redis keeps nothing: what a [PubSubPublisher] publishes
// reaches each [PubSubSubscriber] that is subscribed at that moment. Topics may be patterns,
// or shard channels of a cluster.
//
// [Subscriber.History] is a loop over what is past. [DeadLetters] lists, requeues and deletes
// what groups have given up. The wire format is a [Marshaler] and an [Unmarshaler]:
// [WatermillMarshaler], the default, writes what watermill-redisstream writes;
// [FlamincoMarshaler] is that of the .NET library; [FieldsMarshaler] reads and writes flat
// fields, those of redis-cli for example. That of Pub/Sub is a [PubSubMarshaler] and a
// [PubSubUnmarshaler]: [EnvelopeMarshaler], the default, or [RawPayload].
//
// # Typed channels
//
// A [Hub] makes channels of values over these transports: [NewStreamChannel] and
// [NewPubSubChannel], and [NewChannel] over any other of Watermill. A [Channel] has a
// [Writer] and a [Reader], whose methods have one rule of settlement each: All acknowledges a
// value when the loop comes back for the next, Handle when the function returns nil, Receive
// leaves it to you, Read acknowledges at once, and History and Follow have nothing to settle.
// An [EventBus] carries several types by names of a [Registry]. [HandlerFunc] and
// [ProducerHandlerFunc] make functions of values into handlers of a router. Package sse
// streams a Channel to browsers.
//
// # What holds
//
//	           consumer group                      fan-out                        Pub/Sub
//	delivery   at least once while retained        at least once while retained   at most once
//	ack        the entry leaves the group          the reader continues           the next message
//	nack       again after a back-off, counted,    again after a back-off,        the same,
//	           a dead letter after MaxDeliveries   reported and passed in the end from memory
//	order      MaxInFlight 1: that of the stream;  the same                       that of arrival
//	           OrderingKey: per key; else none
//	crash      another consumer takes over         resume from the last ID kept   lost
//	slow       holds only its own share            reads on at its own pace       counted drops
//
// Order is that within one subscription. Nothing is lost in silence: an entry leaves a group
// by an ack, by an atomic move to the dead-letter stream, or because Redis no longer has it,
// which an [Event] reports with its ID. docs/guarantees.md says what this rests on and what
// can happen twice.
//
// # The life of a message
//
// Publish marshals all messages, then appends up to 500 of them in one transaction. It
// returns when Redis has confirmed them, or a [PublishError] with the [Outcome] of each. What
// may have been appended is never sent again.
//
// A subscription reads entries in batches, as many as its handlers finish in about 100 ms,
// and hands them over one by one. At most MaxInFlight of them are unsettled. The context of a
// message tells its entry ID, topic, group and delivery count ([EntryIDFromContext] and its
// siblings); it ends when the message is settled or when another consumer owns it. As long as
// it is held, here or in a handler, its claim is renewed every third of Tuning.MinIdle, so a
// handler may take any time.
//
// Ack removes it from the group, many with one command when there are many. Nack brings it
// again after NackBackoff, or what [RetryAfter] has set. After MaxDeliveries, or at once with
// [Reject], it moves to the dead-letter stream with its reason. If the process dies, another
// consumer finds the entry after MinIdle; that delivery is counted, and a message that kills
// process after process ends as a dead letter as well.
//
// # Connections and goroutines
//
// The Redis client is the caller's and is never closed. Blocking reads do not use its pool:
// each subscription in a group opens one connection of its own, from the client's options, and
// those without a group share one per 256 topics (in Redis Cluster per hash slot); on a Hub
// all Readers without a group and all loops over Follow do, if their settings are equal. Few
// goroutines belong to a subscription (reading, handing over, settling, keeping leases), and
// with MaxInFlight above 1 one to each message in flight; CONTRIBUTING.md lists them with
// their owners. Constructors start none and do not use the network: the first round trip is
// in Subscribe or Publish, and its error is returned. Publisher, Subscriber and DeadLetters are
// safe for concurrent use, and so are the Pub/Sub types. All subscriptions of a
// PubSubSubscriber share one connection, with shard channels one per node.
//
// # Shutdown
//
// [Subscriber.Close], or the end of the context of Subscribe for one subscription, stops
// fetching, gives back what no handler has begun, lets handlers finish for up to
// Tuning.DrainTimeout, writes their acknowledgements and closes the channel. It is bounded
// and leaves neither goroutines nor connections. Nothing else ends a subscription: outages
// are waited out and reported to SubscriberConfig.OnEvent. [Publisher.Close] waits for the
// calls under way.
//
// # Compatibility
//
// Redis 6.2 or newer, Valkey 7.2 or newer, with scripting allowed; one server, Sentinel and
// Cluster through go-redis v9. Streams can be shared with watermill-redisstream, and package
// compat turns its configurations into those of this package.
package redischannels
