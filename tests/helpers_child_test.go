package tests

import (
	"bufio"
	"context"
	"fmt"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// consumerChild consumes CHILD_TOPIC in the group "g" until its end. On its output it says
//
//	live                       Subscribe has returned
//	got ID COUNT PAYLOAD       a message was received
//	ended ID                   the context of a message that it holds is canceled
//	event KIND ID,ID           the library reports something
//	closed                     Close has returned
//
// A payload "kill" ends the process by SIGKILL, and "exit" by os.Exit, both inside the handler.
// Every other message is acknowledged at once with CHILD_ACK=1; without it the lines of the
// standard input decide: "ack ID", "nack ID", "close".
var consumerChild = redistest.ChildMain("consumer", func() {
	number := func(name string) int {
		n, _ := strconv.Atoi(os.Getenv(name))
		return n
	}
	var output sync.Mutex
	say := func(format string, args ...any) {
		output.Lock()
		defer output.Unlock()
		fmt.Printf(format+"\n", args...)
	}
	fail := func(err error) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}

	options, err := redis.ParseURL(os.Getenv("CHILD_URL"))
	if err != nil {
		fail(err)
	}
	client := redis.NewClient(options)
	config := redischannels.SubscriberConfig{
		Client:        client,
		ConsumerGroup: "g",
		Consumer:      "child",
		MaxInFlight:   number("CHILD_IN_FLIGHT"),
		MaxDeliveries: number("CHILD_MAX_DELIVERIES"),
		NackBackoff:   quickBackoff(),
		Tuning:        quickTuning(),
		OnEvent: func(e redischannels.Event) {
			say("event %s %s", strings.ReplaceAll(e.Kind.String(), " ", "-"), strings.Join(e.EntryIDs, ","))
		},
	}
	if ms := number("CHILD_MIN_IDLE"); ms > 0 {
		config.Tuning.MinIdle = time.Duration(ms) * time.Millisecond
	}
	sub, err := redischannels.NewSubscriber(config, nil)
	if err != nil {
		fail(err)
	}
	messages, err := sub.Subscribe(context.Background(), os.Getenv("CHILD_TOPIC"))
	if err != nil {
		fail(err)
	}
	say("live")

	var leased sync.Map
	go func() {
		for in := bufio.NewScanner(os.Stdin); in.Scan(); {
			word, id, _ := strings.Cut(in.Text(), " ")
			if word == "close" {
				_ = sub.Close()
				say("closed")
				continue
			}
			msg, ok := leased.LoadAndDelete(id)
			if !ok {
				continue
			}
			if word == "ack" {
				msg.(*message.Message).Ack()
			} else {
				msg.(*message.Message).Nack()
			}
		}
	}()
	for msg := range messages {
		id, _ := redischannels.EntryIDFromContext(msg.Context())
		count, _ := redischannels.DeliveryCountFromContext(msg.Context())
		leased.Store(id, msg) // before its ack can be asked for
		say("got %s %d %s", id, count, msg.Payload)
		switch string(msg.Payload) {
		case "kill":
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		case "exit":
			os.Exit(3)
		}
		if os.Getenv("CHILD_ACK") == "1" {
			leased.Delete(id)
			msg.Ack()
			continue
		}
		go func() {
			<-msg.Context().Done()
			say("ended %s", id)
		}()
	}
})

// consumer is a running consumerChild.
type consumer struct{ *redistest.Child }

// startConsumer starts a child that consumes the topic; settings are "NAME=value" without CHILD_.
func startConsumer(t *testing.T, server *redistest.Server, topic string, settings ...string) *consumer {
	t.Helper()
	options := server.Options()
	address := url.URL{Scheme: "redis", Host: options.Addr, Path: "/" + strconv.Itoa(options.DB)}
	if options.Password != "" {
		address.User = url.UserPassword(options.Username, options.Password)
	}
	env := []string{"CHILD_URL=" + address.String(), "CHILD_TOPIC=" + topic}
	for _, s := range settings {
		env = append(env, "CHILD_"+s)
	}
	return &consumer{redistest.StartChild(t, consumerChild, env...)}
}

// live waits until the child's subscription is live.
func (c *consumer) live() *consumer {
	c.WaitLine("live", 2*soon)
	return c
}

// got waits for the next message that the child has received.
func (c *consumer) got(t *testing.T) delivered {
	t.Helper()
	return parseDelivered(c.WaitLine("got ", 2*soon))
}

// tell writes a line to the child.
func (c *consumer) tell(format string, args ...any) { fmt.Fprintf(c.Stdin(), format+"\n", args...) }

// delivered is one message that a handler has received.
type delivered struct {
	id      string
	count   int
	payload string
}

func parseDelivered(line string) delivered {
	id, rest, _ := strings.Cut(line, " ")
	count, payload, _ := strings.Cut(rest, " ")
	n, _ := strconv.Atoi(count)
	return delivered{id: id, count: n, payload: payload}
}

// lines reads what the child says until it ends and returns the messages that it received.
func (c *consumer) lines() (got []delivered) {
	for line := range c.Lines() {
		if rest, ok := strings.CutPrefix(line, "got "); ok {
			got = append(got, parseDelivered(rest))
		}
	}
	return got
}
