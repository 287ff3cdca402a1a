package main

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// histogram counts durations in steps of at most 1/16 of themselves. It may be added to by
// many goroutines.
type histogram struct {
	counts [64 * 16]atomic.Uint64
}

func (h *histogram) add(d time.Duration) {
	v := uint64(max(d, 16))
	power := bits.Len64(v) - 1 // at least 4
	h.counts[power*16+int(v>>(power-4))&15].Add(1)
}

// quantile returns the duration that a part of all does not exceed.
func (h *histogram) quantile(part float64) time.Duration {
	var total uint64
	for i := range h.counts {
		total += h.counts[i].Load()
	}
	rank := uint64(part * float64(total))
	var seen uint64
	for i := range h.counts {
		seen += h.counts[i].Load()
		if seen > rank {
			power := i / 16
			return time.Duration(uint64(16+i%16+1) << (power - 4))
		}
	}
	return 0
}
