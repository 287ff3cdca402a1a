//go:build !race

package redischannels

// raceDetector tells that the race detector is off: allocations can be counted.
const raceDetector = false
