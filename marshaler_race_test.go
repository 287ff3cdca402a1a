//go:build race

package redischannels

// raceDetector says that the race detector is on: it drops pooled objects at
// random, so counts of allocations mean nothing.
const raceDetector = true
