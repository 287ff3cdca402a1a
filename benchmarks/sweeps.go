package main

import (
	"fmt"
	"time"
)

// sweeps are the groups of rows that turn one knob. Their names are group/value.
func sweeps(huge bool) []row {
	var all []row
	for _, size := range []int{16, 64, 256, 4096} {
		// As many bytes of large messages as of small ones would take too long.
		n := map[bool]int{false: 200_000, true: 40_000}[size > 1024]
		all = append(all,
			row{name: fmt.Sprintf("sizes/subscribe-%d", size), unit: rate, payload: size, peers: []peer{
				{name: ours.name, messages: n, run: ours.subscribe(1)},
				{name: redisStream.name, messages: 8_000, run: redisStream.subscribe(1)},
				{name: bare + " loop", messages: n, run: bareSubscribe(1)},
				{name: bareRueidis + " loop", messages: n, run: rueidisSubscribe},
			}},
			row{name: fmt.Sprintf("sizes/publish-64x1-%d", size), unit: rate, payload: size, peers: publishers(64, n)},
			row{name: fmt.Sprintf("sizes/publish-1x100-%d", size), unit: rate, payload: size, peers: []peer{
				{name: ours.name, messages: n, run: ours.publish(1, 100)},
				{name: redisStream.name, messages: 10_000, run: redisStream.publish(1, 100)},
				{name: bare + " pipeline", messages: n, run: barePipeline(100)},
				{name: bareRueidis, messages: n, run: rueidisPublish(1, 100)},
			}})
	}
	for _, p := range []struct{ goroutines, messages int }{{1, 10_000}, {16, 80_000}, {64, 150_000}} {
		all = append(all, row{name: fmt.Sprintf("publishers/%d", p.goroutines), unit: rate, peers: publishers(p.goroutines, p.messages)})
	}
	for _, n := range []int{1, 2, 4, 8} {
		all = append(all, row{name: fmt.Sprintf("subscriptions/%d", n), unit: rate, peers: []peer{
			{name: ours.name, messages: 200_000, run: ours.subscribe(n)},
			{name: redisStream.name, messages: 8_000 * min(n, 2), run: redisStream.subscribe(n)},
			{name: bare + " loops", messages: 200_000, run: bareSubscribe(n)},
		}})
	}
	all = append(all, handlers()...)
	for _, f := range []struct{ subscriptions, deliveries int }{{1, 100_000}, {10, 200_000}, {100, 200_000}, {1000, 200_000}} {
		all = append(all, fanOutRow(fmt.Sprintf("fanout/%d", f.subscriptions), f.subscriptions, f.deliveries))
	}
	for _, l := range []struct {
		rate int
		d    time.Duration
	}{{100, 10 * time.Second}, {1000, 10 * time.Second}, {10_000, 5 * time.Second}} {
		all = append(all, latencyRow(fmt.Sprintf("latency/%d", l.rate), l.rate, l.d))
	}
	all = append(all, growing(huge)...)
	for _, size := range []int{16, 64, 256} {
		all = append(all, row{
			name: fmt.Sprintf("watermill-benchmark/%d", size), unit: rate, payload: size,
			metrics: []metric{{name: "subscribe"}, {name: "publish"}}, // the costs are those of subscribing
			peers: []peer{
				{name: ours.name, messages: 150_000, run: ours.publishThenSubscribe(64)},
				{name: redisStream.name, messages: 20_000, run: redisStream.publishThenSubscribe(64)},
			},
		})
	}
	return all
}

// publishers are the peers that publish one message per call.
func publishers(goroutines, messages int) []peer {
	return []peer{
		{name: ours.name, messages: messages, run: ours.publish(goroutines, 1)},
		{name: redisStream.name, messages: min(messages, 50_000), run: redisStream.publish(goroutines, 1)},
		{name: bare + " XADD", messages: min(messages, 50_000), run: barePublish(goroutines, plain)},
		{name: bare + " AutoPipeline", messages: messages, run: barePublish(goroutines, autoPipeline)},
		{name: bareRueidis, messages: messages, run: rueidisPublish(goroutines, 1)},
	}
}

// handlers have some time to work, and so many messages at once. The last rows of each
// duration keep the order of keys among 32 messages.
func handlers() []row {
	var all []row
	for _, h := range []struct {
		work                 time.Duration
		one, some, many      int // messages of this library with 1, 32 and 1,000 in flight
		watermillRedisStream int // which has always 1
	}{
		{0, 200_000, 200_000, 200_000, 8_000},
		{time.Millisecond, 800, 25_000, 150_000, 700},
		{10 * time.Millisecond, 100, 3_000, 60_000, 90},
	} {
		peers := func(messages int, s settings) []peer {
			return []peer{
				{name: ours.name, messages: messages, run: ours.handle(s, h.work)},
				{name: redisStream.name, messages: h.watermillRedisStream, run: redisStream.handle(s, h.work)},
			}
		}
		name := fmt.Sprintf("handlers/%dms-", h.work.Milliseconds())
		unkeyed := peer{name: ours.name + " without keys", messages: h.some, run: ours.handle(settings{maxInFlight: 32}, h.work)}
		all = append(all,
			row{name: name + "1", unit: rate, peers: peers(h.one, settings{maxInFlight: 1})},
			row{name: name + "32", unit: rate, peers: peers(h.some, settings{maxInFlight: 32})},
			row{name: name + "1000", unit: rate, peers: peers(h.many, settings{maxInFlight: 1000})},
			row{name: name + "32-keys", unit: rate, peers: append(peers(h.some, settings{maxInFlight: 32, keyed: true}), unkeyed)},
		)
	}
	return all
}

// growing are rows in which the peers are this library in other circumstances: the ratio of
// the first to the others shows whether a message costs more there.
func growing(huge bool) []row {
	const flat = 1.25 // and noise
	entries := row{name: "growing/entries", unit: rate}
	sizes := []int{10_000, 1_000_000}
	if huge {
		sizes = append(sizes, 10_000_000)
	}
	for _, n := range sizes {
		entries.peers = append(entries.peers, peer{name: decimal(float64(n)) + " before", messages: 100_000, run: ours.subscribeBehind(n), atMost: flat})
	}
	pending := row{name: "growing/pending", unit: rate}
	foreign := row{name: "growing/pending-elsewhere", unit: rate}
	for _, n := range []int{1, 32, 1000} {
		pending.peers = append(pending.peers, peer{name: decimal(float64(n)) + " in flight", messages: 100_000, run: ours.hold(n), atMost: flat})
	}
	for _, n := range []int{1, 1000} {
		foreign.peers = append(foreign.peers, peer{name: decimal(float64(n)) + " pending", messages: 100_000, run: ours.subscribeBeside(n), atMost: flat})
	}
	return []row{entries, pending, foreign}
}
