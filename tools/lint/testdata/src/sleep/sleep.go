package sleep

import (
	"context"
	clock "time"
)

func sleep() {
	clock.Sleep(clock.Second) // want `select on a context and a timer`
	pause := clock.Sleep      // want `select on a context and a timer`
	pause(clock.Second)
}

func wait(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-clock.After(clock.Second):
	}
}
