package tests

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/redistest"
)

// A message that kills its process takes the blame for all that was in flight or prefetched
// with it: neighbours end as dead letters, or the killer is delivered for ever. (F24, section 4)
func TestSubscriber_PoisonThatKillsItsProcess(t *testing.T) {
	t.Parallel()
	for _, way := range []string{"kill", "exit"} {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			const neighbours, limit = 1000, 4
			server := redistest.Shared(t)
			client := server.Client(t)
			topic := redistest.Key(t)
			var payloads []string
			for i := range neighbours + 1 {
				payloads = append(payloads, fmt.Sprintf("m%d", i))
			}
			payloads[neighbours/2] = way
			ids := publish(t, client, topic, payloads...)
			require.NoError(t, client.XGroupCreate(t.Context(), topic, "g", "0").Err())

			handled := make(map[string]int)
			killed := 0
			for crashed := true; crashed; {
				require.Less(t, killed, 2*limit, "the poison goes on killing")
				child := startConsumer(t, server, topic, "IN_FLIGHT=8", fmt.Sprintf("MAX_DELIVERIES=%d", limit), "MIN_IDLE=300", "ACK=1")
				ended := make(chan struct{})
				go func() {
					defer close(ended)
					for line := range child.Lines() {
						rest, ok := strings.CutPrefix(line, "got ")
						if !ok {
							continue
						}
						m := parseDelivered(rest)
						handled[m.payload]++
						if m.payload == way {
							killed++
							if m.count != killed {
								t.Errorf("delivery %d of the poison has the count %d", killed, m.count)
							}
						}
					}
				}()
				redistest.Eventually(t, 6*soon, func() bool {
					select {
					case <-ended:
						return true
					default:
						crashed = client.XLen(t.Context(), deadStream(topic)).Val() == 0 ||
							groupOf(t, client, topic).LastDeliveredID != ids[neighbours] || len(pendingOf(t, client, topic)) > 0
						return !crashed
					}
				}, "neither the end of the child nor that of the backlog")
				if !crashed {
					child.tell("close")
				}
				<-ended
			}

			require.Equal(t, limit, killed)
			for i, p := range payloads {
				require.NotZero(t, handled[p], "%s (%s) was not handled", p, ids[i])
			}
			dead, err := client.XRange(t.Context(), deadStream(topic), "-", "+").Result()
			require.NoError(t, err)
			require.Len(t, dead, 1, "only the poison is a dead letter")
			require.Equal(t, ids[neighbours/2], dead[0].Values["_dead_entry_id"])
			require.Equal(t, "4", dead[0].Values["_dead_count"])
		})
	}
}
