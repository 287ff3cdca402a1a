package redischannels

import "sync/atomic"

// delivery is one attempt at handling one message.
type delivery struct {
	sub     *subscription
	id      string
	count   int
	verdict atomic.Pointer[verdict]
}

// subscription is one topic consumed by one Subscribe call.
type subscription struct {
	topic, group string
}
