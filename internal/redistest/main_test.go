package redistest

import (
	"context"
	"testing"
	"time"
)

func TestMain(m *testing.M) { Main(m) }

// soon bounds what is expected to happen at once, with room for a loaded machine.
const soon = 10 * time.Second

// testContext ends with the test, and in any case before the patience of "go test".
func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}
