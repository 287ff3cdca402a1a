package metadata

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/redistest"
)

func TestMain(m *testing.M) { redistest.Main(m) }

// Bug: one message with 10 MB of metadata leaves a buffer of that size in the
// pool, and soon every processor has one.
func TestMarshalKeepsNoHugeBuffer(t *testing.T) {
	t.Parallel()
	w := writers.New().(*writer)
	w.buf = bytes.Repeat([]byte{'x'}, pooledBytes+1)
	require.False(t, w.reusable())
	w.buf = w.buf[:0:pooledBytes]
	require.True(t, w.reusable())
}
