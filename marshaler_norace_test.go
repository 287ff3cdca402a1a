//go:build !race

package redischannels

// raceDetector says that the race detector is off: allocations can be counted.
const raceDetector = false
