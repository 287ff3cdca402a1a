package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/flaminco/redischannels"
)

// order is what the store sells.
type order struct {
	ID    int64  `json:"id"`
	Item  string `json:"item"`
	Cents int    `json:"cents"`
}

var items = []string{"lamp", "chair", "table", "shelf", "rug", "sofa"}

// shop is a few services that talk over streams: the store takes orders, billing charges them, the warehouse
// sends what is paid, and mail thanks the customers and asks for a review later.
type shop struct {
	orders, paid, reviews *redischannels.Channel[order]
	started               time.Time
	next                  atomic.Int64
}

var (
	errCardRefused = errors.New("the card was refused")
	errBankBusy    = errors.New("the bank does not answer")
	errConveyor    = errors.New("the conveyor stands still")
)

func newShop(hub *redischannels.Hub) (*shop, error) {
	open := func(topic, group string, change func(*redischannels.SubscriberConfig)) (*redischannels.Channel[order], error) {
		config := redischannels.StreamChannelConfig{
			Publisher:  redischannels.PublisherConfig{Retention: redischannels.Retention{MaxLen: 50_000}},
			Subscriber: redischannels.SubscriberConfig{ConsumerGroup: group, MaxInFlight: 64, MaxDeliveries: 8},
		}
		if change != nil {
			change(&config.Subscriber)
		}
		return redischannels.NewStreamChannel[order](hub, topic, config)
	}
	s := &shop{started: time.Now()}
	var errs [3]error
	s.orders, errs[0] = open("orders", "billing", nil)
	s.paid, errs[1] = open("paid", "warehouse", func(c *redischannels.SubscriberConfig) { c.MaxDeliveries = 30 })
	s.reviews, errs[2] = open("reviews", "mail", nil)
	return s, errors.Join(errs[:]...)
}

// services are what run until ctx ends, by their names.
func (s *shop) services() map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"store":     s.sell,
		"billing":   s.bill,
		"warehouse": s.send,
		"mail":      s.mail,
	}
}

// rate is how many orders per second come at a time: in waves of two minutes, with a rush in each fifth.
func rate(since time.Duration) float64 {
	wave := 30 + 25*math.Sin(2*math.Pi*since.Minutes()/2)
	if int(since.Minutes())%5 == 4 {
		wave *= 4
	}
	return wave
}

// sell takes orders. A failure is the customer's: the store goes on.
func (s *shop) sell(ctx context.Context) error {
	const tick = 100 * time.Millisecond
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for due := 0.0; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		var batch []order
		for due += rate(time.Since(s.started)) * tick.Seconds(); due >= 1; due-- {
			batch = append(batch, order{ID: s.next.Add(1), Item: items[rand.IntN(len(items))], Cents: 500 + rand.IntN(50_000)})
		}
		if len(batch) > 0 {
			_, _ = s.orders.Writer().WriteAll(ctx, batch...)
		}
	}
}

// bill charges orders. One in thirty fails at first, one in three hundred for ever.
func (s *shop) bill(ctx context.Context) error {
	return s.orders.Reader().Handle(ctx, func(ctx context.Context, o order) error {
		if err := work(ctx, 5*time.Millisecond); err != nil {
			return err
		}
		switch {
		case o.ID%300 == 0:
			return redischannels.Permanent(fmt.Errorf("order of a %s: %w", o.Item, errCardRefused))
		case rand.IntN(30) == 0:
			return errBankBusy
		}
		_, err := s.paid.Writer().Write(ctx, o)
		return err
	}, redischannels.HandleConfig{Concurrency: 16})
}

// stuck reports whether the conveyor of the warehouse stands still, as it does for half a minute in every four.
func stuck(since time.Duration) bool { return since%(4*time.Minute) > 210*time.Second }

// send hands paid orders to the carrier, a few at a time.
func (s *shop) send(ctx context.Context) error {
	return s.paid.Reader().Handle(ctx, func(ctx context.Context, o order) error {
		if stuck(time.Since(s.started)) {
			return errConveyor
		}
		if err := work(ctx, 20*time.Millisecond); err != nil {
			return err
		}
		_, err := s.reviews.Writer().WriteAfter(ctx, time.Minute, o)
		return err
	}, redischannels.HandleConfig{Concurrency: 8})
}

// mail asks for reviews, many with one call.
func (s *shop) mail(ctx context.Context) error {
	return s.reviews.Reader().HandleBatch(ctx, func(ctx context.Context, batch []redischannels.Delivery[order]) error {
		return work(ctx, 50*time.Millisecond)
	}, redischannels.BatchConfig{Size: 50, Wait: time.Second})
}

// work takes about as long as it is told.
func work(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d/2 + rand.N(d))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
