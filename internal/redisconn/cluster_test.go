package redisconn

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// The slots are the answers of CLUSTER KEYSLOT.
func TestSlot(t *testing.T) {
	for key, slot := range map[string]int{
		"123456789": 12739, "": 0, "foo": 12182, "{foo}bar": 12182, "a{foo}{bar}": 12182,
		"foo{}{bar}": 8363, "foo{{bar}}zap": 4015, "foo{bar": 15278,
	} {
		require.Equal(t, slot, Slot(key), key)
	}
}
