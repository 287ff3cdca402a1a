package ws

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redistest"
)

func TestMain(m *testing.M) { redistest.Main(m) }

func TestNewHandler_Problems(t *testing.T) {
	t.Parallel()
	_, err := NewHandler(nil, Options{OriginPatterns: []string{"["}})
	require.ErrorIs(t, err, redischannels.ErrInvalidArgument)
	require.ErrorIs(t, err, redischannels.ErrInvalidConfig)
	require.ErrorContains(t, err, "Options.OriginPatterns")
}

func TestParse(t *testing.T) {
	t.Parallel()
	require.Equal(t, frame{ID: "1-2", Event: "e", Data: []byte(`{"a":1}`)}, parse([]byte("id: 1-2\nevent: e\ndata: {\"a\":1}\n\n")))
	require.Equal(t, frame{Data: []byte(`"two\nlines"`)}, parse([]byte("data: two\ndata: lines\n\n")))
	require.Equal(t, frame{Data: []byte("{\n\n}")}, parse([]byte("data: {\ndata: \ndata: }\n\n")))
	require.Equal(t, frame{ID: "7"}, parse([]byte("id: 7\n\n")))
}
