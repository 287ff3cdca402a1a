//go:build race

package redischannels

// raceDetector tells that the race detector is on: it drops pooled objects at
// random, so counts of allocations mean nothing.
const raceDetector = true
