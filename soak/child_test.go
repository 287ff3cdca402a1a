package soak

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

const (
	minIdle       = time.Second // so that a reply can be late by more than that and less than its deadline
	claimInterval = 200 * time.Millisecond
	drainTimeout  = 10 * time.Second
	group         = "g"

	keyed  = "keyed"  // topic with an order per key
	strict = "strict" // topic with one order, and one consumer

	// The same with one consumer at a time whose handlers are slow now and then, all at once, so
	// that entries wait in it for longer than a second.
	slowKeyed  = "slow-keyed"
	slowStrict = "slow-strict"

	// A topic in which another consumer has so many entries pending that a claim scan over a slow link
	// takes seconds. Its consumer claims none of them.
	scanned        = "scanned"
	scannedMinIdle = time.Hour
	scannedPending = 100_000
	scannedDelay   = 20 * time.Millisecond // each way

	slowChance        = 60 // one message of so many begins a slow time
	slowTime          = 1500 * time.Millisecond
	slowClaimInterval = 4 * time.Second // what waits for a claim scan waits for longer than a handler does
)

var topics = []string{keyed, strict, slowKeyed, slowStrict, scanned}

func perKey(topic string) bool { return topic == keyed || topic == slowKeyed }
func isSlow(topic string) bool { return topic == slowKeyed || topic == slowStrict }

// sole reports whether a topic has one consumer at a time.
func sole(topic string) bool { return topic != keyed }

func number(name string) int {
	n, _ := strconv.Atoi(os.Getenv(name))
	return n
}

var output sync.Mutex

// say writes one line of the journal. The moment is that of the machine, so that the lines of
// several processes can be compared.
func say(verb string, args ...any) {
	output.Lock()
	defer output.Unlock()
	fmt.Println(append([]any{verb, time.Now().UnixNano()}, args...)...)
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func childClient() *redis.Client {
	return redis.NewClient(&redis.Options{
		Addr: os.Getenv("SOAK_ADDR"), DialTimeout: time.Second, ReadTimeout: time.Second, WriteTimeout: time.Second,
	})
}

// watchStalls says when the process did not run for a while: a loaded machine is a fault too.
// It runs until stop is closed.
func watchStalls(stop <-chan struct{}, stalled func(from time.Time)) {
	const tick = 50 * time.Millisecond
	for last := time.Now(); ; last = time.Now() {
		select {
		case <-time.After(tick):
		case <-stop:
			return
		}
		if time.Since(last) > tick+minIdle/5 {
			stalled(last)
		}
	}
}

// stopRequested is closed when the process is asked to end.
func stopRequested() <-chan struct{} {
	stop := make(chan struct{})
	go func() {
		for in := bufio.NewScanner(os.Stdin); in.Scan(); {
			if in.Text() == "close" {
				close(stop)
				return
			}
		}
	}()
	return stop
}

// publisherChild publishes to keys of its own, each with the numbers from SOAK_FIRST on. It says
//
//	try TOPIC KEY SEQ    before it publishes; a number is tried until it is confirmed
//	ok TOPIC KEY SEQ     Publish has returned nil
var publisherChild = redistest.ChildMain("publisher", func() {
	pub, err := redischannels.NewPublisher(redischannels.PublisherConfig{Client: childClient(), Timeout: 3 * time.Second}, nil)
	if err != nil {
		fatal(err)
	}
	stop := stopRequested()
	say("live")
	next := map[string]int{}
	for running := true; running; {
		topic, key := drawTopic(), fmt.Sprintf("%s-%d", os.Getenv("SOAK_NAME"), rand.IntN(10))
		slot := topic + key
		if next[slot] == 0 {
			next[slot] = number("SOAK_FIRST")
		}
		var batch []*message.Message
		first := next[slot]
		for range 1 + rand.IntN(3) {
			msg := message.NewMessage(watermill.NewUUID(), []byte(fmt.Sprint(key, " ", next[slot])))
			batch = append(batch, msg)
			next[slot]++
		}
		for n := range batch {
			say("try", topic, key, first+n)
		}
		// A batch is a transaction: all of it or none, so all of it can be tried again.
		for pub.Publish(topic, batch...) != nil {
			<-time.After(20 * time.Millisecond)
		}
		for n := range batch {
			say("ok", topic, key, first+n)
		}
		select {
		case <-stop:
			running = false
		case <-time.After(time.Duration(5+rand.IntN(10)) * time.Millisecond):
		}
	}
	_ = pub.Close()
	say("closed")
})

// drawTopic chooses a topic. The consumers of slow ones have little time.
func drawTopic() string {
	switch n := rand.IntN(100); {
	case n < 5:
		return slowStrict
	case n < 10:
		return slowKeyed
	case n < 28:
		return strict
	case n < 29:
		return scanned
	}
	return keyed
}

// consumerChild consumes SOAK_TOPIC. It says, with the entry's ID behind the moment,
//
//	live CONSUMER    it has subscribed, under this name in Redis
//	start ID KEY SEQ COUNT    a handler begins
//	ack ID, nack ID, reject ID    it ends, said before the message is ended
//	ended ID    its context was canceled before it has ended
//	event KIND ID,ID,...    the library reports something
//	deaf SINCE    it has received nothing since that moment, on purpose
//
// With SOAK_HOLD it keeps every message until it is asked to close.
var consumerChild = redistest.ChildMain("consumer", func() {
	config := redischannels.SubscriberConfig{
		Client:        childClient(),
		ConsumerGroup: group,
		Consumer:      os.Getenv("SOAK_NAME"),
		MaxInFlight:   number("SOAK_IN_FLIGHT"),
		NackBackoff:   redischannels.Backoff{Min: 20 * time.Millisecond, Max: 200 * time.Millisecond},
		Tuning: redischannels.Tuning{
			MinIdle: minIdle, ClaimInterval: claimInterval, DrainTimeout: drainTimeout, ConsumerTimeout: 5 * time.Second,
		},
		OnEvent: func(e redischannels.Event) {
			say("event", strings.ReplaceAll(e.Kind.String(), " ", "-"), strings.Join(e.EntryIDs, ","))
		},
	}
	topic := os.Getenv("SOAK_TOPIC")
	if isSlow(topic) {
		config.Tuning.ClaimInterval = slowClaimInterval
	}
	if topic == scanned {
		config.Tuning.MinIdle = scannedMinIdle
	}
	if perKey(topic) {
		config.OrderingKey = func(m *message.Message) string {
			key, _, _ := strings.Cut(string(m.Payload), " ")
			return key
		}
	}
	sub, err := redischannels.NewSubscriber(config, nil)
	if err != nil {
		fatal(err)
	}
	stop := stopRequested()
	var messages <-chan *message.Message
	for {
		if messages, err = sub.Subscribe(context.Background(), topic); err == nil {
			break
		}
		<-time.After(100 * time.Millisecond) // the server may be away
	}
	say("live", sub.Stats()[0].Consumer)
	go watchStalls(nil, func(from time.Time) { say("stall", from.UnixNano()) })
	closing := make(chan struct{})
	release := make(chan struct{}) // for who holds everything
	go func() {
		<-stop
		close(release)
		say("closing")
		_ = sub.Close()
		say("closed")
		close(closing)
	}()
	hold := os.Getenv("SOAK_HOLD") != ""
	var slowUntil time.Time
	for msg := range messages {
		id, _ := redischannels.EntryIDFromContext(msg.Context())
		count, _ := redischannels.DeliveryCountFromContext(msg.Context())
		say("start", id, string(msg.Payload), count)
		deaf := false
		if isSlow(topic) && rand.IntN(slowChance) == 0 {
			if deaf = rand.IntN(2) == 0; !deaf {
				slowUntil = time.Now().Add(slowTime)
			}
		}
		go handle(msg, id, hold, time.Until(slowUntil), release)
		if deaf { // an application that does something else
			since := time.Now()
			<-time.After(slowTime)
			say("deaf", since.UnixNano())
		}
	}
	<-closing
})

// handle is mostly quick, and slower than any lease for certain messages, in every process. It
// takes at least the time that it is given.
func handle(msg *message.Message, id string, hold bool, least time.Duration, release <-chan struct{}) {
	work := max(least, time.Duration(rand.IntN(10_000))*time.Microsecond)
	if _, seq, _ := strings.Cut(string(msg.Payload), " "); os.Getenv("SOAK_TOPIC") == keyed && atoi(seq)%300 == 150 {
		work = 6 * minIdle
	}
	var done <-chan time.Time
	if !hold {
		timer := time.NewTimer(work)
		defer timer.Stop()
		done = timer.C
	}
	select {
	case <-msg.Context().Done():
		say("ended", id)
		msg.Nack()
		return
	case <-release:
		if !hold {
			select {
			case <-msg.Context().Done():
				say("ended", id)
				msg.Nack()
				return
			case <-done:
			}
		}
	case <-done:
	}
	switch n := rand.IntN(100); {
	case n < 4 && !hold:
		say("nack", id)
		msg.Nack()
	case n < 6 && !hold:
		say("reject", id)
		redischannels.Reject(msg, "drawn")
		msg.Nack()
	default:
		say("ack", id)
		msg.Ack()
	}
}
