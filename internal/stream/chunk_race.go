//go:build race

package stream

// poison says whether chunks are overwritten when they are released, which makes a use of
// them after that visible. It takes time, so it is for tests with the race detector.
const poison = true
