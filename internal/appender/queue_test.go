package appender

import (
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

// A server that refuses one command as too large closes the connection; the outcomes of all
// that were sent with it are unknown then.
func TestAppender_LargeCommandsTravelAlone(t *testing.T) {
	t.Parallel()
	client := redis.NewClient(&redis.Options{})
	defer client.Close()
	for name, c := range map[string]struct {
		replicas         int
		singles, batches [][]int // sizes per load
	}{
		"without replicas": {0, [][]int{{1, 2, maxShared}}, [][]int{{maxShared + 1}, {3 << 20}}},
		"with replicas":    {1, [][]int{{1}, {maxShared + 1}, {2, maxShared}, {3 << 20}}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := New(Config{Client: client, Replicas: c.replicas})
			for _, size := range []int{1, maxShared + 1, 2, maxShared, 3 << 20} {
				job := &appendJob{ctx: t.Context(), cmds: make([]Command, 1), bytes: size}
				l := a.laneOf(job)
				l.queue = append(l.queue, job)
			}
			loads := func(l *lane) (sizes [][]int) {
				l.active, l.limit = 1, 1 // the test is its only sender
				for load := a.take(l); load != nil; load = a.take(l) {
					load.cancel(nil)
					var one []int
					for _, job := range load.jobs {
						one = append(one, job.bytes)
					}
					sizes = append(sizes, one)
				}
				return sizes
			}
			require.Equal(t, c.singles, loads(&a.singles))
			require.Equal(t, c.batches, loads(&a.batches))
		})
	}
}
