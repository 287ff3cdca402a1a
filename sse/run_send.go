package sse

import (
	"slices"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/bridge"
	"github.com/flaminco/redischannels/internal/stream"
)

// sendPieces and sendBytes bound one append, which blocks Redis.
const (
	sendPieces = 256
	sendBytes  = 256 << 10
)

// keep sends the buffer and renews the lease, until the run is over.
func (r *Run[T]) keep() {
	defer r.forget()
	renew := time.NewTicker(r.runs.config.renewal())
	defer renew.Stop()
	coalesce := time.NewTimer(time.Hour)
	coalesce.Stop()
	defer coalesce.Stop()
	for {
		select {
		case <-r.filled:
			coalesce.Reset(r.runs.config.Coalesce) // NoCoalesce is negative: now
		case <-coalesce.C:
			r.send(false)
		case <-r.urgent:
			r.send(false)
		case <-renew.C:
			r.send(true)
		case <-r.alive.Done():
			return
		}
	}
}

// forget removes the run from the runs that Close ends.
func (r *Run[T]) forget() {
	r.runs.mu.Lock()
	defer r.runs.mu.Unlock()
	delete(r.runs.runs, r)
}

// send sends the buffer. If it is empty, renew renews the lease. It retries until it succeeds or
// the run is over.
func (r *Run[T]) send(renew bool) {
	for ; ; renew = false {
		number, pieces, ending := r.next()
		if len(pieces) == 0 && (!renew || ending) {
			return // after a failed End the run ends with its lease
		}
		answer, ok := r.append(number, pieces)
		switch {
		case !ok:
			return
		case answer.Outcome != stream.RunAppended:
			_ = r.finish(outcomeError(answer))
			return
		}
		r.sent(pieces)
	}
}

// next returns the pieces of the next append and the number of the first of them.
func (r *Run[T]) next() (number uint64, pieces [][]byte, ending bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n, bytes := 0, 0
	for n < len(r.pieces) && n < sendPieces && (n == 0 || bytes+len(r.pieces[n]) <= sendBytes) {
		bytes += len(r.pieces[n])
		n++
	}
	return r.number + 1, slices.Clone(r.pieces[:n]), r.ending
}

// append sends pieces until there is a reply. It returns false when the run is over.
func (r *Run[T]) append(number uint64, pieces [][]byte) (answer stream.RunAnswer, ok bool) {
	err := r.runs.retry(r.alive, r.id, func(client redis.UniversalClient) (err error) {
		answer, err = r.key.AppendRun(r.alive, client, r.runs.config.times(), r.epoch, number, pieces)
		return err
	}, r.reportFirst)
	if err != nil {
		_ = r.finish(err)
	}
	return answer, err == nil
}

// reportFirst is like always, and reports the first error of an outage.
func (r *Run[T]) reportFirst(failed int, err error) bool {
	if failed == 1 {
		r.runs.config.OnError(r.failure(bridge.RedisError(err)))
	}
	return true
}

// sent removes pieces that are in Redis from the buffer.
func (r *Run[T]) sent(pieces [][]byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return
	}
	for _, piece := range pieces {
		r.bytes -= len(piece) + pieceSize
	}
	r.pieces = r.pieces[len(pieces):]
	if len(r.pieces) == 0 {
		r.pieces = nil
	}
	r.number += uint64(len(pieces))
	r.advance()
}

// signal wakes the receiver of a channel, unless a signal is pending.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
