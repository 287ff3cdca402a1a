package main

import "time"

// row is one kind of work that several peers do.
type row struct {
	name  string // for -run, and in the table; with a slash when it is one of a group
	unit  string
	peers []peer // the first is this library

	// metrics are for rows whose trials set several values. Each is a result of its own.
	metrics []metric
	// payload is the size of a message, 0 for payloadSize.
	payload int
	// copies is how often each message is to arrive, 0 for once.
	copies int
	// rate is the number of messages per second of rows that keep a pace.
	rate int
	// repetitions and window are for rows that watch for a time instead of working.
	repetitions int
	window      time.Duration
	// most is the greatest acceptable value of the first peer, for rows where less is better.
	most float64
}

// metric is one of several values of a row.
type metric struct {
	name string // is added to that of the row
	unit string // that of the row if empty
	most float64
	// atMost is the aim against a peer, a ratio.
	against string
	atMost  float64
}

// peer is one side of a row. Each has as many messages as keep it busy for a second or two:
// rates are compared, not times.
type peer struct {
	name     string
	messages int
	run      func(*trial) error
	// least is the ratio to this peer that the library aims at in the first metric, 0 if there is no aim.
	least float64
	// atMost is the greatest ratio that it aims at, for rows where less is better.
	atMost float64
}

const (
	bare        = "go-redis"
	bareRueidis = "rueidis"
	rate        = "messages/s"
)

// rows are the aims of the library, with payloads of 256 bytes.
func rows() []row {
	slow := 10 * time.Millisecond
	return append([]row{
		{name: "subscribe", unit: rate, peers: []peer{
			{name: ours.name, messages: 200_000, run: ours.subscribe(1)},
			{name: redisStream.name, messages: 8_000, run: redisStream.subscribe(1), least: 25},
			{name: bare + " loop", messages: 200_000, run: bareSubscribe(1), least: 0.7},
			{name: bareRueidis + " loop", messages: 200_000, run: rueidisSubscribe, least: 0.85},
		}},
		{name: "typed-bytes", unit: rate, peers: []peer{
			{name: "Reader[[]byte].All", messages: 200_000, run: readTexts},
			{name: ours.name, messages: 200_000, run: untyped(textFields), least: 1.3},
			{name: bareRueidis + " loop", messages: 200_000, run: rueidisSubscribe, least: 0.95},
		}},
		{name: "typed-reader", unit: rate, payload: documentSize, peers: []peer{
			{name: "Reader[T].All of JSON", messages: 100_000, run: readDocuments},
			{name: "All of bytes, then json.Unmarshal", messages: 100_000, run: readAndUnmarshal, least: 0.87}, // 1.15 times the time
			{name: ours.name, messages: 100_000, run: untyped(documentFields)},
		}},
		{name: "typed-handle-2", unit: rate, payload: documentSize, peers: []peer{
			{name: "Reader[T].Handle of JSON", messages: 100_000, run: handleDocuments},
			{name: ours.name, messages: 100_000, run: untyped(documentFields), least: 1},
		}},
		{name: "handle-batch-500", unit: rate, peers: []peer{
			{name: "Reader[[]byte].HandleBatch", messages: 200_000, run: handleTexts},
			{name: bareRueidis + " loop", messages: 200_000, run: rueidisSubscribe, least: 0.9},
		}},
		{name: "publish-64x1", unit: rate, peers: []peer{
			{name: ours.name, messages: 150_000, run: ours.publish(64, 1)},
			{name: redisStream.name, messages: 50_000, run: redisStream.publish(64, 1), least: 2.6},
			{name: bare + " AutoPipeline", messages: 150_000, run: barePublish(64, autoPipeline), least: 1},
			{name: bareRueidis, messages: 150_000, run: rueidisPublish(64, 1), least: 1.1},
		}},
		{name: "publish-1x100", unit: rate, peers: []peer{
			{name: ours.name, messages: 150_000, run: ours.publish(1, 100)},
			{name: redisStream.name, messages: 10_000, run: redisStream.publish(1, 100), least: 12},
			{name: bare + " pipeline", messages: 150_000, run: barePipeline(100), least: 0.85},
			{name: bareRueidis, messages: 150_000, run: rueidisPublish(1, 100), least: 0.9},
		}},
		{name: "publish-1x1", unit: rate, peers: []peer{
			{name: ours.name, messages: 10_000, run: ours.publish(1, 1)},
			{name: redisStream.name, messages: 10_000, run: redisStream.publish(1, 1)},
			{name: bare + " XADD", messages: 10_000, run: barePublish(1, plain), least: 1},
		}},
		{name: "router", unit: rate, peers: []peer{
			{name: ours.name, messages: 100_000, run: ours.route},
			{name: redisStream.name, messages: 8_000, run: redisStream.route, least: 15},
		}},
		{name: "handler-10ms-100", unit: rate, peers: []peer{
			{name: ours.name, messages: 15_000, run: ours.handle(settings{maxInFlight: 100}, slow)},
			{name: redisStream.name, messages: 150, run: redisStream.handle(settings{}, slow), least: 98},
		}},
		fanOutRow("fanout-1000", 1000, 200_000),
		latencyRow("latency-1000", 1000, 3*time.Second),
		delayedRow("delayed-1000", 1000, 5*time.Second),
		{name: "pubsub", unit: rate, peers: []peer{
			{name: ours.name, messages: 300_000, run: pubSubPeer(oursPubSub).flood},
			{name: bare + " PubSub", messages: 300_000, run: pubSubPeer(barePubSub).flood, least: 0.7},
		}},
		{name: "pubsub-latency", unit: "µs at 1,000/s", metrics: []metric{{name: "p50"}, {name: "p99", against: bare + " PubSub", atMost: 1.5}}, peers: []peer{
			{name: ours.name, messages: 5_000, run: pubSubPeer(oursPubSub).latency(50, 99)},
			{name: bare + " PubSub", messages: 5_000, run: pubSubPeer(barePubSub).latency(50, 99)},
		}},
		{name: "idle-100", unit: "commands/s", repetitions: 1, window: 15 * time.Second, metrics: []metric{{name: "sent", most: 27}, {name: "executed", most: 62}}, peers: []peer{
			{name: ours.name, messages: 100, run: ours.idle(100)},
			{name: redisStream.name, messages: 100, run: redisStream.idle(100)},
		}},
	}, observedRows()...)
}
