package tests

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/flaminco/redischannels/internal/redistest"
)

// Watermill's TestReconnect leaves a goroutine behind that waits for more messages.
func TestMain(m *testing.M) {
	redistest.Main(m, goleak.IgnoreTopFunction("github.com/ThreeDotsLabs/watermill/pubsub/tests.TestReconnect.func2"))
}
