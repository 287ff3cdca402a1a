package appender

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/redistest"
	"github.com/flaminco/redischannels/internal/stream"
)

// A caller that shared a pipeline with one that gave up got the error that its own append was withdrawn,
// where no timeout of ours and no retries of the client were set.
func TestAppender_CallersEndIndependently(t *testing.T) {
	t.Parallel()
	refused := &net.OpError{Op: "dial", Err: errors.New("refused")}
	release := make(chan struct{})
	client := redis.NewClient(&redis.Options{
		MaxRetries: -1, DialerRetries: 1, PoolSize: 10,
		Dialer: func(ctx context.Context, _, _ string) (net.Conn, error) {
			select {
			case <-release:
			case <-ctx.Done():
			}
			return nil, refused
		},
	})
	defer client.Close()
	a := New(Config{Client: client})
	do := func(ctx context.Context) <-chan Result {
		cmds := make([]Command, 1)
		cmds[0].Start(nil, NewHead("key", stream.Trim{}), 1, 0)
		cmds[0].Field("f", new([]byte))
		results := make([]Result, 1)
		done := make(chan Result, 1)
		go func() {
			a.Do(ctx, time.Time{}, NewHead("key", stream.Trim{}), cmds, 10, results)
			done <- results[0]
		}()
		return done
	}
	eventually := func(condition func() bool, what string) {
		redistest.Eventually(t, 10*time.Second, func() bool {
			a.mu.Lock()
			defer a.mu.Unlock()
			return condition()
		}, "%s", what)
	}
	ctx, stay := context.WithCancel(context.Background())
	defer stay()
	var senders []<-chan Result
	first, leaveFirst := context.WithCancel(ctx)
	for n := range singleSenders {
		if n == 0 {
			senders = append(senders, do(first))
		} else {
			senders = append(senders, do(ctx))
		}
		eventually(func() bool { return len(a.singles.flying) == n+1 }, "a sender")
	}
	leaving, leave := context.WithCancel(ctx)
	one, other := do(leaving), do(ctx)
	eventually(func() bool { return len(a.singles.queue) == 2 }, "two that wait for a sender")
	leaveFirst() // its place is theirs
	require.ErrorIs(t, (<-senders[0]).Err, context.Canceled)
	eventually(func() bool { return len(a.singles.queue) == 0 }, "a sender for both")
	leave()
	require.ErrorIs(t, (<-one).Err, context.Canceled)
	eventually(func() bool { return a.singles.stuck == 0 }, "both are withdrawn")
	close(release)
	for _, done := range append(senders[1:], other) {
		r := <-done
		require.Equal(t, NotAppended, r.Outcome)
		require.ErrorIs(t, r.Err, refused, "not the end of another one")
	}
	require.NoError(t, a.Close(t.Context()))
}

// Where replicas are waited for, several transactions can be one load: the error of one that
// was not sent was lost when the next one went well, and it was not tried again.
func TestAppender_ErrorOfOneTransactionIsKept(t *testing.T) {
	t.Parallel()
	refused := &net.OpError{Op: "dial", Err: errors.New("refused")}
	client := redistest.Shared(t).Client(t, func(o *redis.Options) {
		o.MaxRetries, o.DialerRetries = -1, 1
		var dials atomic.Int32
		o.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if dials.Add(1) == 1 {
				return nil, refused
			}
			return new(net.Dialer).DialContext(ctx, network, addr)
		}
	})
	key := redistest.Key(t)
	a := New(Config{Client: client, Replicas: 1, WaitTimeout: time.Millisecond})
	load := &appendLoad{ctx: t.Context()}
	for range 2 {
		cmds := make([]Command, 2)
		for i := range cmds {
			cmds[i].Start(nil, NewHead(key, stream.Trim{}), 1, 0)
			cmds[i].Field("f", new([]byte))
		}
		load.jobs = append(load.jobs, &appendJob{ctx: t.Context(), head: NewHead(key, stream.Trim{}), cmds: cmds})
	}
	outcomes := a.execute(load)
	require.Len(t, outcomes, 4)
	for _, r := range outcomes[:2] {
		require.Equal(t, NotAppended, r.Outcome)
		require.ErrorIs(t, r.Err, refused)
	}
	for _, r := range outcomes[2:] {
		require.Equal(t, UnderReplicated, r.Outcome, "%v", r.Err) // there are no replicas
	}
}

// An append that had finished when its caller gave up, but had not been reported, became unknown.
func TestAppender_WhatHasFinishedIsKnown(t *testing.T) {
	t.Parallel()
	client := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"})
	defer client.Close()
	a := New(Config{Client: client})
	last := errors.New("of the attempt before")
	job := &appendJob{cmds: make([]Command, 2), last: last, load: &appendLoad{finished: true}, results: []Result{
		{Outcome: Appended, ID: "1-0"}, {Outcome: NotAppended},
	}}
	results := make([]Result, 2)
	a.abandon(job, context.Canceled, results)
	require.Equal(t, Result{Outcome: Appended, ID: "1-0"}, results[0])
	require.Equal(t, NotAppended, results[1].Outcome)
	require.ErrorIs(t, results[1].Err, context.Canceled)
	require.ErrorIs(t, results[1].Err, last)
}
