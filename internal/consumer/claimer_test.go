package consumer

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/redistest"
	"github.com/flaminco/redischannels/internal/stream"
)

func TestMain(m *testing.M) { redistest.Main(m) }

// The name that a crashed process had left counted as a living consumer as long as it was not idle
// for two claim intervals, and entries were released to it.
func TestPeers_AliveIsWhatWasSeenAfterTheFirstLook(t *testing.T) {
	began := time.Now()
	at := func(d time.Duration) time.Time { return began.Add(d) }
	idle := func(name string, d time.Duration) stream.Idle { return stream.Idle{Name: name, Idle: d} }
	var p peers

	p.see([]stream.Idle{idle("left", 0)}, at(0), at(time.Millisecond))
	require.Zero(t, p.alive, "it may have ended just now")
	p.see([]stream.Idle{idle("left", time.Second)}, at(time.Second), at(time.Second))
	require.Zero(t, p.alive)
	p.see([]stream.Idle{idle("left", 2*time.Second), idle("new", 500*time.Millisecond)}, at(2*time.Second), at(2*time.Second))
	require.Equal(t, 1, p.alive, "it has come since")
	p.see([]stream.Idle{idle("left", 10*time.Millisecond), idle("new", time.Second)}, at(3*time.Second), at(3*time.Second))
	require.Equal(t, 2, p.alive, "it was seen again")
	p.see(nil, at(4*time.Second), at(4*time.Second))
	require.Zero(t, p.alive)
}
