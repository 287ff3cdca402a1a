package tests

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/flaminco/redischannels/internal/redistest"
)

// Goroutines of others that outlive their tests: Watermill's TestReconnect leaves one behind that
// waits for more messages, and the reader of watermill-redisstream sleeps on for half a second
// after its Close has returned.
func TestMain(m *testing.M) {
	redistest.Main(m,
		goleak.IgnoreTopFunction("github.com/ThreeDotsLabs/watermill/pubsub/tests.TestReconnect.func2"),
		goleak.IgnoreAnyFunction("github.com/ThreeDotsLabs/watermill-redisstream/pkg/redisstream.(*Subscriber).read"))
}
