// Package soak runs publishers and consumers as processes of their own, breaks everything around
// them at random, and checks afterwards what became of every message.
//
//   - soak_test.go: the processes, and the course of a run
//   - child_test.go: what the processes do and say
//   - faults_test.go: what is broken, drawn from a seed
//   - journal_test.go: what the processes have said, in one place
//   - check_test.go: the promises, as questions to the journal and to Redis
//   - check_order_test.go: order, and that nothing pauses
//   - check_count_test.go: delivery counts
//
// SOAK is the length of a run, SOAK_SEED repeats the faults of an earlier one.
package soak

import (
	"testing"

	"github.com/flaminco/redischannels/internal/redistest"
)

func TestMain(m *testing.M) { redistest.Main(m) }
