package tests

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

// A server that lacks a command is found out by the first entry that has to be recovered,
// which nobody looks at. XAUTOCLAIM came with Redis 6.2. (F70)
func TestF70_AServerThatIsTooOld(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, redistest.Arg("rename-command", "XAUTOCLAIM", ""))
	client := server.Client(t)
	_, err := newSub(t, client).Subscribe(t.Context(), redistest.Key(t))
	require.ErrorIs(t, err, redischannels.ErrUnsupportedServer)

	// Without a group nothing of it is needed.
	messages := newSub(t, client, fanOut).subscribe(t, "all")
	publish(t, client, "all", "m")
	require.Equal(t, []string{"m"}, receiveAcked(t, messages, 1))
}
