package feed

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/stream"
)

// sent is an Output that notes what it is given.
type sent struct {
	events []stream.ID
	places []stream.ID
}

func (s *sent) Open() error              { return nil }
func (s *sent) Write(e *Event) error     { s.events = append(s.events, e.ID); return nil }
func (s *sent) Place(at stream.ID) error { s.places = append(s.places, at); return nil }
func (s *sent) Beat() error              { return nil }
func (s *sent) Flush() (bool, error)     { return false, nil }

// In a stream of epochs an ID is that of the same event forever: whatever a failover has lost and a writer
// sends again, a client gets it once. An event of a later epoch says that the end of the client's was lost.
func TestClient_SendsAnIDOfAnEpochOnce(t *testing.T) {
	t.Parallel()
	out := &sent{}
	c := &Client{Output: out, At: stream.ID{Ms: 5, Seq: 3}, feed: &Feed{config: Config{Epochs: true}}}
	for _, e := range []*Event{
		{ID: stream.ID{Ms: 5, Seq: 2}}, {ID: stream.ID{Ms: 5, Seq: 3}}, {ID: stream.ID{Ms: 5, Seq: 4}}, {ID: stream.ID{Ms: 5, Seq: 4}},
	} {
		_, err := c.send(e)
		require.NoError(t, err)
	}
	require.Equal(t, []stream.ID{{Ms: 5, Seq: 4}}, out.events)
	is, err := c.send(&Event{ID: stream.ID{Ms: 6, Seq: 1}})
	require.False(t, is)
	require.ErrorIs(t, err, ErrEnded)
	require.Len(t, out.events, 1)
	require.Equal(t, []stream.ID{{Ms: 5, Seq: 1<<64 - 1}}, out.places)
}
