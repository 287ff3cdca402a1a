package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"
)

// names are the keys of one import in Redis.
type names struct {
	topic   string // stream with a message per row
	handled string // hash: order ID to the line it was handled from
	totals  string // hash: "EUR orders" and "EUR amount", and so for each currency
}

func newNames(prefix, id string) names {
	topic := prefix + ":" + id
	return names{topic: topic, handled: topic + ":handled", totals: topic + ":totals"}
}

// books are the effect of handling an order. A message may be delivered more than once: after a
// crash between the effect and the acknowledgement it comes again. So the effect and the note
// that it took place are written in one step, and the second time nothing is added.
type books struct {
	client *redis.Client
	names  names
}

// book answers {1 if the order was entered now, the line that has entered it}.
var book = redis.NewScript(`
local new = redis.call('HSETNX', KEYS[1], ARGV[1], ARGV[2])
if new == 1 then
  redis.call('HINCRBY', KEYS[2], ARGV[3] .. ' orders', 1)
  redis.call('HINCRBY', KEYS[2], ARGV[3] .. ' amount', ARGV[4])
end
return {new, redis.call('HGET', KEYS[1], ARGV[1])}
`)

// enter adds an order, once. It returns the line that the order was entered from, which is
// another one when the file has the order twice, and whether that took place now.
func (b books) enter(ctx context.Context, o order, line int) (from int, now bool, err error) {
	reply, err := book.Run(ctx, b.client, []string{b.names.handled, b.names.totals}, o.id, line, o.currency, o.total()).Slice()
	if err != nil {
		return 0, false, err
	}
	if len(reply) != 2 {
		return 0, false, fmt.Errorf("unexpected reply of Redis: %v", reply)
	}
	from, err = strconv.Atoi(fmt.Sprint(reply[1]))
	return from, reply[0] == int64(1), err
}

// count returns the number of orders entered.
func (b books) count(ctx context.Context) (int, error) {
	n, err := b.client.HLen(ctx, b.names.handled).Result()
	return int(n), err
}

// total is the sum of one currency.
type total struct{ orders, amount int64 }

func (b books) totals(ctx context.Context) (map[string]total, error) {
	fields, err := b.client.HGetAll(ctx, b.names.totals).Result()
	if err != nil {
		return nil, err
	}
	totals := make(map[string]total)
	for name, value := range fields {
		currency, what, _ := strings.Cut(name, " ")
		n, err := strconv.ParseInt(value, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%s of %s: %w", name, b.names.totals, err)
		}
		t := totals[currency]
		if what == "orders" {
			t.orders = n
		} else {
			t.amount = n
		}
		totals[currency] = t
	}
	return totals, nil
}

// line returns the line that an order was entered from, 0 if it was not.
func (b books) line(ctx context.Context, orderID string) (int, error) {
	n, err := b.client.HGet(ctx, b.names.handled, orderID).Int()
	if errors.Is(err, redis.Nil) {
		return 0, nil
	}
	return n, err
}
