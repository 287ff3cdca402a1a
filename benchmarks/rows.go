package main

import "time"

// row is one kind of work that several peers do.
type row struct {
	name  string // for -run, and in the table
	unit  string
	peers []peer // the first is this library

	// repetitions and window are for rows that watch for a time instead of working.
	repetitions int
	window      time.Duration
	// most is the greatest acceptable value of the first peer, for rows where less is better.
	most float64
}

// peer is one side of a row. Each has as many messages as keep it busy for a second or two:
// rates are compared, not times.
type peer struct {
	name     string
	messages int
	run      func(*trial) error
	// least is the ratio to this peer that the library aims at, 0 if there is no aim.
	least float64
	// atMost is the greatest ratio that it aims at, for rows where less is better.
	atMost float64
}

const bare = "go-redis"

// rows are the aims of the library, with payloads of 256 bytes.
func rows() []row {
	const rate = "messages/s"
	slow := 10 * time.Millisecond
	return []row{
		{name: "subscribe", unit: rate, peers: []peer{
			{name: ours.name, messages: 200_000, run: ours.subscribe},
			{name: redisStream.name, messages: 8_000, run: redisStream.subscribe, least: 20},
			{name: bare + " loop", messages: 200_000, run: bareSubscribe, least: 0.7},
		}},
		{name: "typed-reader", unit: rate, peers: []peer{
			{name: "Reader[T] of JSON", messages: 100_000, run: typedRead},
			{name: ours.name, messages: 100_000, run: untypedRead, least: 0.6},
		}},
		{name: "publish-64x1", unit: rate, peers: []peer{
			{name: ours.name, messages: 150_000, run: ours.publish(64, 1)},
			{name: redisStream.name, messages: 50_000, run: redisStream.publish(64, 1), least: 2.5},
			{name: bare + " AutoPipeline", messages: 150_000, run: barePublish(64, autoPipeline), least: 0.85},
		}},
		{name: "publish-1x100", unit: rate, peers: []peer{
			{name: ours.name, messages: 150_000, run: ours.publish(1, 100)},
			{name: redisStream.name, messages: 10_000, run: redisStream.publish(1, 100), least: 12},
			{name: bare + " pipeline", messages: 150_000, run: barePipeline(100), least: 0.85},
		}},
		{name: "publish-1x1", unit: rate, peers: []peer{
			{name: ours.name, messages: 10_000, run: ours.publish(1, 1)},
			{name: redisStream.name, messages: 10_000, run: redisStream.publish(1, 1)},
			{name: bare + " XADD", messages: 10_000, run: barePublish(1, plain)},
		}},
		{name: "router", unit: rate, peers: []peer{
			{name: ours.name, messages: 100_000, run: ours.route},
			{name: redisStream.name, messages: 8_000, run: redisStream.route, least: 12},
		}},
		{name: "handler-10ms-100", unit: rate, peers: []peer{
			{name: ours.name, messages: 15_000, run: ours.handle(100, slow)},
			{name: redisStream.name, messages: 150, run: redisStream.handle(100, slow), least: 90},
		}},
		{name: "pubsub", unit: rate, peers: []peer{
			{name: ours.name, messages: 300_000, run: pubSubPeer(oursPubSub).flood},
			{name: bare + " PubSub", messages: 300_000, run: pubSubPeer(barePubSub).flood, least: 0.7},
		}},
		{name: "pubsub-p50", unit: "µs at 1,000/s", peers: []peer{
			{name: ours.name, messages: 3_000, run: pubSubPeer(oursPubSub).latency(50)},
			{name: bare + " PubSub", messages: 3_000, run: pubSubPeer(barePubSub).latency(50)},
		}},
		{name: "pubsub-p99", unit: "µs at 1,000/s", peers: []peer{
			{name: ours.name, messages: 5_000, run: pubSubPeer(oursPubSub).latency(99)},
			{name: bare + " PubSub", messages: 5_000, run: pubSubPeer(barePubSub).latency(99), atMost: 1.5},
		}},
		{name: "idle-100", unit: "commands/s", repetitions: 1, window: 15 * time.Second, most: 40, peers: []peer{
			{name: ours.name, messages: 100, run: ours.idle(100)},
			{name: redisStream.name, messages: 100, run: redisStream.idle(100)},
		}},
	}
}
