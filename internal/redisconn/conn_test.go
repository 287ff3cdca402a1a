package redisconn

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// CLIENT UNBLOCK waits for a connection of its pool, and meanwhile the blocked connection is lost and
// another one is opened. The ID before belongs to another client, if the server was restarted.
func TestConn_UnblockOfAnEarlierConnection(t *testing.T) {
	c := &Conn{ready: true, blocked: true, id: 7}
	unblock := blockedID{c, 7}
	text, err := unblock.MarshalBinary()
	require.NoError(t, err)
	require.Equal(t, "7", string(text))

	c.id = 8
	_, err = unblock.MarshalBinary()
	require.ErrorIs(t, err, errNotBlocked)
	text, err = blockedID{c, 8}.MarshalBinary()
	require.NoError(t, err)
	require.Equal(t, "8", string(text))

	c.blocked = false
	_, err = blockedID{c, 8}.MarshalBinary()
	require.ErrorIs(t, err, errNotBlocked)
}
