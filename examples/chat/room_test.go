package main

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/redistest"
)

func TestRooms(t *testing.T) {
	t.Parallel()
	chat := startChat(t, func(c *config) { c.maxRooms = 3 })
	chat.entries.burst = 1000
	v := chat.signedIn(t, "Mira", "")
	for name, status := range map[string]int{
		"lounge": 200, "a": 200, "room-42": 200, strings.Repeat("x", 32): 200,
		"A": 422, "-a": 422, "a-": 422, "a_b": 422, "a b": 422, "caf%C3%A9": 422, strings.Repeat("x", 33): 422, "%3Cscript%3E": 422, "a%2Fb": 422, "a%0Ab": 422,
	} {
		require.Equal(t, status, v.call("POST", "rooms/"+name, nil, nil), name)
		if status == 422 {
			require.Equal(t, 422, v.say(name, "message-1", "hello"), name)
			require.Equal(t, 422, v.call("GET", "rooms/"+name+"/events", nil, nil), name)
		}
	}
	require.Equal(t, 409, v.call("POST", "rooms/no-more-room", nil, nil))
	require.Equal(t, 404, v.say("no-more-room", "message-1", "hello"))
	require.Equal(t, 404, v.call("GET", "rooms/no-more-room/events", nil, nil))
	require.Equal(t, 200, v.call("POST", "rooms/a", nil, nil), "a room that exists")
	var list struct{ Rooms []roomInfo }
	names := func() (names []string) {
		for _, room := range list.Rooms {
			names = append(names, room.Name)
		}
		return names
	}
	require.Equal(t, 200, v.call("GET", "rooms", nil, &list))
	require.Equal(t, []string{"lounge", "support", "ideas", "a", "room-42", strings.Repeat("x", 32)}, names())

	require.Equal(t, roomInfo{Name: "a", Stream: "chat:room:a"}, list.Rooms[3])

	// A room that is not used makes room, and its messages go.
	require.Equal(t, 201, v.say("a", "message-1", "hello"))
	require.InDelta(t, chat.config.roomAge.Seconds(), chat.redis.TTL(roomKey("a")).Seconds(), 10)
	long := float64(time.Now().Add(-chat.config.roomAge - time.Minute).Unix())
	require.NoError(t, chat.directory.client.ZAdd(t.Context(), directoryKey, redis.Z{Score: long, Member: "room-42"}).Err())
	require.Equal(t, 200, v.call("POST", "rooms/no-more-room", nil, nil))
	require.Equal(t, 200, v.call("GET", "rooms", nil, &list))
	require.Equal(t, []string{"lounge", "support", "ideas", "a", "no-more-room", strings.Repeat("x", 32)}, names())
}

func TestMessages(t *testing.T) {
	t.Parallel()
	chat := startChat(t, nil)
	mira, ana := chat.signedIn(t, "Mira", ""), chat.signedIn(t, "Ana", testAdminKey)
	send := func(v *visitor, body any) int { return v.call("POST", "rooms/lounge/messages", body, nil) }
	said := func(text string) map[string]any { return map[string]any{"key": "message-1", "text": text} }
	longest := strings.Repeat("🙏", maxText)
	announcement := map[string]any{"key": "message-2", "text": "At 14:00", "announcement": true}
	for _, tc := range []struct {
		by     *visitor
		body   any
		status int
	}{
		{mira, said("hello"), 201},
		{mira, said(" two\r\nlines\t"), 201},
		{mira, said("<script>alert(1)</script>"), 201},
		{mira, said(longest), 201},
		{ana, announcement, 201},

		{mira, announcement, 403},
		{mira, said(longest + "x"), 422},
		{mira, said(""), 422},
		{mira, said(" \n\u200b\u00ad "), 422},
		{mira, said("a\x00b"), 422},
		{mira, said("a\x1b[31mb"), 422},
		{mira, said("a\u202eb"), 422},
		{mira, map[string]any{"key": "short", "text": "hello"}, 422},
		{mira, map[string]any{"key": `"><script>`, "text": "hello"}, 422},
		{mira, map[string]any{"key": strings.Repeat("k", 65), "text": "hello"}, 422},
		{mira, `{"key": "message-1", "text": "hello", "from": {"name": "Ana"}}`, 400},
		{mira, `{"key": "message-1", "text": "hello"} {}`, 400},
		{mira, `{"key": "message-1", "text": 7}`, 400},
		{mira, `{"key": "mess`, 400},
		{mira, ``, 400},
		{mira, `{"key": "message-1", "text": "` + strings.Repeat("x", maxBody) + `"}`, 413},
		{chat.visitor(t), said("hello"), 401},
	} {
		require.Equal(t, tc.status, send(tc.by, tc.body), "%v", tc.body)
	}
	form := mira.request("POST", "rooms/lounge/messages", said("hello"))
	form.Header.Set("Content-Type", "text/plain")
	response, _ := mira.do(form, nil)
	require.Equal(t, 415, response.StatusCode)

	// The server determines the author and the permissions of a message, not the page.
	events, stop := mira.follow("rooms/lounge/events", "")
	defer stop()
	from := fmt.Sprintf(`"from":{"id":"%s","name":"Mira","role":"customer"}`, mira.as)
	var ids []string
	for _, want := range []string{
		`{"key":"message-1",` + from + `,"text":"hello"}`,
		`{"key":"message-1",` + from + `,"text":"two\nlines"}`,
		`{"key":"message-1",` + from + `,"text":"\u003cscript\u003ealert(1)\u003c/script\u003e"}`,
		`{"key":"message-1",` + from + `,"text":"` + longest + `"}`,
		fmt.Sprintf(`{"key":"message-2","from":{"id":"%s","name":"Ana","role":"admin"},"text":"At 14:00","announcement":true}`, ana.as),
	} {
		id, event, _ := strings.Cut(next(t, events), " ")
		require.Equal(t, " "+want, event)
		ids = append(ids, id)
	}

	// Another visitor continues behind the second message.
	later, stopLater := ana.follow("rooms/lounge/events", ids[1])
	defer stopLater()
	for _, id := range ids[2:] {
		require.True(t, strings.HasPrefix(next(t, later), id+" "))
	}
}

func TestRates(t *testing.T) {
	t.Parallel()
	chat := startChat(t, func(c *config) { c.rate, c.burst = 0.5, 3 })
	mira, theo := chat.signedIn(t, "Mira", ""), chat.signedIn(t, "Theo", "")
	for range 3 {
		require.Equal(t, 201, mira.say("lounge", "message-1", "hello"))
	}
	response, _ := mira.do(mira.request("POST", "rooms/lounge/messages", map[string]string{"key": "message-1", "text": "hello"}), nil)
	require.Equal(t, 429, response.StatusCode)
	require.Equal(t, "2", response.Header.Get("Retry-After"))
	require.Equal(t, 201, theo.say("lounge", "message-1", "hello"), "another user is concerned")

	// Signing in again does not help for long, and neither do requests that are refused.
	var refused int
	for range 30 {
		if chat.visitor(t).call("POST", "session", map[string]string{"name": "Mira"}, nil) == 429 {
			refused++
		}
	}
	require.Greater(t, refused, 5)

	// The number of entries is bounded, and active ones stay.
	l, err := newLimiter(0.001, 1, 100)
	require.NoError(t, err)
	for i := range 1000 {
		require.Equal(t, i > 0, l.allow("busy") > 0)
		l.allow(fmt.Sprint(i))
	}
	require.Equal(t, 100, l.buckets.Len())
}

// One address could make all rooms that there may be, by many users, and one user could open as many event
// streams as a room has.
func TestSharesOfOneAddressAndOneUser(t *testing.T) {
	t.Parallel()
	chat := startChat(t, func(c *config) { c.userStreams = 3 })
	made := 0
	for user := range 5 {
		v := chat.signedIn(t, fmt.Sprint("Mira", user), "")
		for n := range 8 {
			switch status := v.call("POST", fmt.Sprintf("rooms/room-%d-%d", user, n), struct{}{}, nil); status {
			case 200:
				made++
			default:
				require.Equal(t, 429, status)
			}
		}
	}
	require.GreaterOrEqual(t, made, 20)
	require.Less(t, made, 25, "the rate is one in ten seconds")
	other := chat.signedIn(t, "Theo", "")
	require.Equal(t, 200, other.call("POST", "rooms/room-0-0", struct{}{}, nil), "a room that exists")

	mira := chat.signedIn(t, "Mira", "")
	var stops []func()
	for range 3 {
		_, stop := mira.follow("rooms/lounge/events", "")
		stops = append(stops, stop)
	}
	require.Equal(t, 429, mira.call("GET", "rooms/lounge/live", nil, nil))
	_, stop := other.follow("rooms/lounge/events", "")
	defer stop()
	for _, stop := range stops {
		stop()
	}
	require.Eventually(t, func() bool {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		response, err := mira.http.Do(mira.request("GET", "rooms/lounge/events", nil).WithContext(ctx))
		require.NoError(t, err)
		defer response.Body.Close()
		return response.StatusCode == 200
	}, 10*time.Second, 10*time.Millisecond, "streams that have ended do not count")
}

func TestPresence(t *testing.T) {
	t.Parallel()
	chat := startChat(t, nil)
	mira, ana := chat.signedIn(t, "Mira", ""), chat.signedIn(t, "Ana", testAdminKey)
	live, stopLive := ana.follow("rooms/lounge/live", "")
	defer stopLive()
	await := func(parts ...string) {
		t.Helper()
		redistest.Eventually(t, 20*time.Second, func() bool {
			event := next(t, live)
			for _, part := range parts {
				if !strings.Contains(event, part) {
					return false
				}
			}
			return true
		}, "an event with %q", parts)
	}
	_, stopMira := mira.follow("rooms/lounge/events", "")
	await("people", `"name":"Mira"`)
	_, stopAna := ana.follow("rooms/lounge/events", "")
	await("people", `"name":"Mira"`, `"name":"Ana","role":"admin"`)
	require.Equal(t, 204, mira.call("POST", "rooms/lounge/typing", nil, nil))
	await("typing", `"typing":{"id":"`+mira.as+`","name":"Mira"`)
	stopMira()
	redistest.Eventually(t, 20*time.Second, func() bool { return !strings.Contains(next(t, live), "Mira") }, "Mira to have left")
	stopAna()
	redistest.Eventually(t, 20*time.Second, func() bool { return !strings.Contains(next(t, live), "people\":[") }, "nobody")
}

func TestOpenRoomsAreBounded(t *testing.T) {
	t.Parallel()
	chat := startChat(t, func(c *config) { c.openRooms, c.idle = 2, 100*time.Millisecond })
	v := chat.signedIn(t, "Mira", "")
	lounge, stopLounge := v.follow("rooms/lounge/events", "")
	_, stopIdeas := v.follow("rooms/ideas/events", "")
	require.Equal(t, 503, v.say("support", "message-1", "hello"))
	stopIdeas()
	redistest.Eventually(t, 20*time.Second, func() bool { return v.say("support", "message-1", "hello") == 201 }, "a room to be closed")

	// The one that is in use stays open all the time, and one that was closed opens again.
	redistest.Eventually(t, 20*time.Second, func() bool { return v.say("ideas", "message-2", "hello") == 201 }, "another room to be closed")
	require.Equal(t, 201, v.say("lounge", "message-3", "hello"))
	require.Contains(t, next(t, lounge), "message-3")
	stopLounge()
}

// Streams end when the instance does, and it takes no more.
func TestEnding(t *testing.T) {
	t.Parallel()
	chat := startChat(t, nil)
	v := chat.signedIn(t, "Mira", "")
	events, stop := v.follow("rooms/lounge/events", "")
	defer stop()
	chat.endStreams()
	select {
	case _, more := <-events:
		require.False(t, more)
	case <-time.After(20 * time.Second):
		t.Fatal("the stream continues")
	}
	require.Equal(t, 503, v.say("lounge", "message-1", "hello"))
}
