package stream

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// largeReply is a reply that a chunk is used for.
func largeReply(entries int) []byte {
	words := []string{"*1", "*2", "key", fmt.Sprintf("*%d", entries)}
	for i := range entries {
		words = append(words, "*2", fmt.Sprintf("%d-0", i+1), "*2", "name", strings.Repeat(fmt.Sprintf("%04d", i), 100))
	}
	return []byte(resp(words...))
}

// readLarge reads such a reply through a tap.
func readLarge(t *testing.T, entries int) []Entry {
	t.Helper()
	server := largeReply(entries)
	require.Greater(t, len(server), chunkSize/4)
	require.Less(t, len(server), chunkSize)
	var r Reader
	conn := tapped(&scripted{in: bytes.NewReader(server), chunk: func() int { return 1 << 20 }}, &r)
	_, err := conn.Write([]byte(readCommand))
	require.NoError(t, err)
	_, err = conn.Read(make([]byte, 1<<15))
	require.NoError(t, err)
	require.NotNil(t, r.chunk)
	pages, err := parseReply(r.reply, r.chunk)
	require.NoError(t, err)
	r.chunk.release()
	require.Len(t, pages, 1)
	return pages[0].Entries
}

// Memory that is used again while it is needed would make messages of other messages'
// bytes: a chunk is free when the last copy of the last entry is released, not before.
func TestChunkIsFreeWhenUnused(t *testing.T) {
	entries := readLarge(t, 500)
	in := entries[0].in
	require.NotNil(t, in)
	require.EqualValues(t, 500, in.users.Load())
	first, detached := entries[0].Share(), entries[1].Share()
	detached.Detach()
	want := [][]string{fieldsOf(&first), fieldsOf(&detached)}
	require.EqualValues(t, 501, in.users.Load(), "a detached entry needs no chunk")

	Recycle(entries)
	require.EqualValues(t, 1, in.users.Load())
	require.Equal(t, want[0], fieldsOf(&first))
	first.Release()
	first.Release() // does nothing
	require.Zero(t, in.users.Load())
	require.Equal(t, want[1], fieldsOf(&detached))
	require.Empty(t, fieldsOf(&first))
	if poison {
		require.Equal(t, bytes.Repeat([]byte{0xff}, chunkSize), in.b[:])
	}
}

// A reply of a few megabytes was put together in ever larger memory of its own, which was all
// cleared, copied and collected: half of the processor time of entries of 4 KiB.
func TestChunkFitsWhatAReadAsksFor(t *testing.T) {
	for _, payload := range []int{0, 16, 256, 4 << 10, 64 << 10, chunkSize / 2} {
		e := NewEntry(ID{Ms: 1700000000000}, []string{"_watermill_message_uuid", strings.Repeat("u", 36), "metadata", "", "payload", strings.Repeat("x", payload)})
		reply := len(resp("*2", e.Text, "*6")) + len(e.raw)
		require.Less(t, Fitting(e.Size)*reply, chunkSize, payload)
		require.Greater(t, (Fitting(e.Size)+1)*(reply+aroundEntry), chunkSize, "no less than fit")
	}
	require.Equal(t, 1, Fitting(chunkSize))
}

// The memory kept for a small reply is no more than the reply, and for an error none.
func TestChunkOfSmallReplies(t *testing.T) {
	server := []byte(resp("*1", "*2", "key", "*1", "*2", "1-0", "*2", "name", strings.Repeat("x", chunkSize/8)))
	failure := []byte("-ERR " + strings.Repeat("x", chunkSize/2) + "\r\n")
	for _, reply := range [][]byte{server, failure} {
		var r Reader
		conn := tapped(&scripted{in: bytes.NewReader(reply), chunk: func() int { return 1 << 20 }}, &r)
		_, err := conn.Write([]byte(readCommand))
		require.NoError(t, err)
		_, err = conn.Read(make([]byte, 1<<10))
		require.NoError(t, err)
		require.Nil(t, r.chunk)
	}
}

// A push that needed memory of its own does not make a chunk behind it the reader's own.
func TestChunkBehindALargePush(t *testing.T) {
	push := ">2\r\n" + resp("invalidate", strings.Repeat("x", chunkSize+chunkSize/4))
	reply := resp("*1", "*2", "key", "*1", "*2", "1-0", "*2", "name", strings.Repeat("y", chunkSize-1000))
	var r Reader
	conn := tapped(&scripted{in: bytes.NewReader([]byte(push + reply)), chunk: func() int { return 1 << 12 }}, &r)
	_, err := conn.Write([]byte(readCommand))
	require.NoError(t, err)
	rest, err := readAll(conn, 1<<10)
	require.NoError(t, err)
	require.Equal(t, push+standIn, rest)
	require.Equal(t, reply, string(r.reply)) // builds that overwrite what is free see it here
	require.NotNil(t, r.chunk)
	require.EqualValues(t, 1, r.chunk.users.Load())
}

// A push that fills the chunk to its last byte leaves no room to read into. Reading into none
// is no end: the reader went round forever.
func TestAPushThatFillsTheChunk(t *testing.T) {
	push := ">2\r\n" + resp(strings.Repeat("x", chunkSize-1000))
	push += resp(strings.Repeat("y", chunkSize-len(push)-len("$999\r\n\r\n")))
	require.Len(t, push, chunkSize)
	reply := resp("*1", "*2", "key", "*1", "*2", "1-0", "*2", "name", "value")
	var r Reader
	conn := tapped(&scripted{in: bytes.NewReader([]byte(push + reply)), chunk: func() int { return 1 << 20 }}, &r)
	_, err := conn.Write([]byte(readCommand))
	require.NoError(t, err)
	rest, err := readAll(conn, 1<<10)
	require.NoError(t, err)
	require.Equal(t, push+standIn, rest)
	require.Equal(t, reply, string(r.reply))
}
