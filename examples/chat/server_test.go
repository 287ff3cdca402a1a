package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/redistest"
)

// testChat is an instance of the chat in this process, on an embedded server.
type testChat struct {
	*server
	url   string
	redis *miniredis.Miniredis
}

func startChat(t *testing.T, change func(*config)) *testChat {
	t.Helper()
	embedded := miniredis.RunT(t)
	client := redis.NewClient(&redis.Options{Addr: embedded.Addr(), MaxRetries: -1})
	config := defaultConfig()
	config.adminKey = testAdminKey
	config.rate, config.burst = 1000, 1000
	config.presence = 50 * time.Millisecond
	if change != nil {
		change(&config)
	}
	chat, err := newServer(t.Context(), client, config)
	require.NoError(t, err)
	web := httptest.NewServer(chat.handler())
	t.Cleanup(func() {
		chat.endStreams()
		web.Close()
		require.NoError(t, chat.close())
		require.NoError(t, client.Close())
	})
	return &testChat{chat, web.URL, embedded}
}

// visitor is a browser as far as the server can see.
type visitor struct {
	t    *testing.T
	chat *testChat
	http *http.Client
	as   string
}

func (c *testChat) visitor(t *testing.T) *visitor {
	jar, err := cookiejar.New(nil)
	require.NoError(t, err)
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	return &visitor{t: t, chat: c, http: &http.Client{Jar: jar, Transport: transport}}
}

func (c *testChat) signedIn(t *testing.T, name, key string) *visitor {
	t.Helper()
	v := c.visitor(t)
	var user User
	require.Equal(t, 201, v.call("POST", "session", map[string]string{"name": name, "key": key}, &user))
	v.as = user.ID
	return v
}

// request makes one to a path below /api/; a string is the body as it is, other values are JSON.
func (v *visitor) request(method, path string, body any) *http.Request {
	v.t.Helper()
	var reader io.Reader
	switch body := body.(type) {
	case nil:
	case string:
		reader = strings.NewReader(body)
	default:
		encoded, err := json.Marshal(body)
		require.NoError(v.t, err)
		reader = bytes.NewReader(encoded)
	}
	r, err := http.NewRequestWithContext(v.t.Context(), method, v.chat.url+"/api/"+path+"?as="+v.as, reader)
	require.NoError(v.t, err)
	r.Header.Set("Content-Type", "application/json")
	return r
}

func (v *visitor) do(r *http.Request, into any) (*http.Response, string) {
	v.t.Helper()
	response, err := v.http.Do(r)
	require.NoError(v.t, err)
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	require.NoError(v.t, err)
	if into != nil {
		require.NoError(v.t, json.Unmarshal(body, into), string(body))
	}
	return response, string(body)
}

func (v *visitor) call(method, path string, body, into any) int {
	v.t.Helper()
	response, _ := v.do(v.request(method, path, body), into)
	return response.StatusCode
}

func (v *visitor) say(room, key, text string) int {
	v.t.Helper()
	return v.call("POST", "rooms/"+room+"/messages", map[string]any{"key": key, "text": text}, nil)
}

// follow opens an event stream and returns its events, each as "id event data".
func (v *visitor) follow(path, lastEventID string) (events <-chan string, stop func()) {
	v.t.Helper()
	r := v.request("GET", path, nil)
	if lastEventID != "" {
		r.Header.Set("Last-Event-ID", lastEventID)
	}
	response, err := v.http.Do(r)
	require.NoError(v.t, err)
	require.Equal(v.t, 200, response.StatusCode)
	require.Equal(v.t, "text/event-stream", strings.Split(response.Header.Get("Content-Type"), ";")[0])
	out := make(chan string, 1000)
	go func() {
		defer close(out)
		var id, event, data string
		lines := bufio.NewScanner(response.Body)
		for lines.Scan() {
			name, value, _ := strings.Cut(lines.Text(), ": ")
			switch {
			case lines.Text() == "" && data != "":
				out <- strings.Join([]string{id, event, data}, " ")
				event, data = "", ""
			case name == "id":
				id = value
			case name == "event":
				event = value
			case name == "data":
				data = value
			}
		}
	}()
	return out, func() {
		_ = response.Body.Close()
		for range out {
		}
	}
}

func next(t *testing.T, events <-chan string) string {
	t.Helper()
	select {
	case event, ok := <-events:
		require.True(t, ok, "the stream has ended")
		return event
	case <-time.After(20 * time.Second):
		t.Fatal("no event")
		return ""
	}
}

func TestSignIn(t *testing.T) {
	t.Parallel()
	chat := startChat(t, nil)
	for _, tc := range []struct {
		name, key string
		status    int
		shown     string
	}{
		{"Mira", "", 201, "Mira"},
		{"  Mira \t Kowalska ", "", 201, "Mira Kowalska"},
		{"<b>\"&'</b>", "", 201, "<b>\"&'</b>"},
		{"日本語 🙏", "", 201, "日本語 🙏"},
		{strings.Repeat("é", maxName), "", 201, strings.Repeat("é", maxName)},
		{strings.Repeat("é", maxName+1), "", 422, ""},
		{"", "", 422, ""},
		{" \u00a0 ", "", 422, ""},
		{"\u200b\u200d", "", 422, ""},
		{"a\x00b", "", 422, ""},
		{"ana\u202egnp.exe", "", 422, ""},
		{"line\u2028line", "", 201, "line line"},
		{"Ana", testAdminKey, 201, "Ana"},
		{"Ana", "guess", 403, ""},
	} {
		v := chat.visitor(t)
		var user User
		response, _ := v.do(v.request("POST", "session", map[string]string{"name": tc.name, "key": tc.key}), &user)
		require.Equal(t, tc.status, response.StatusCode, "%q", tc.name)
		require.Equal(t, tc.shown, user.Name)
		if tc.status != 201 {
			require.Empty(t, response.Cookies())
			continue
		}
		require.Equal(t, map[bool]string{true: admin, false: customer}[tc.key != ""], user.Role)
		require.Len(t, response.Cookies(), 1)
		cookie := response.Cookies()[0]
		require.True(t, cookie.HttpOnly)
		require.Equal(t, http.SameSiteStrictMode, cookie.SameSite)

		v.as = user.ID
		var same User
		require.Equal(t, 200, v.call("GET", "session", nil, &same))
		require.Equal(t, user, same)
		require.Equal(t, 204, v.call("DELETE", "session", nil, nil))
		require.Equal(t, 401, v.call("GET", "session", nil, nil))
	}
}

func TestSessionsCannotBeForged(t *testing.T) {
	t.Parallel()
	chat := startChat(t, nil)
	mira := chat.signedIn(t, "Mira", "")
	where, err := url.Parse(chat.url + "/api/")
	require.NoError(t, err)
	good := mira.http.Jar.Cookies(where)[0].Value
	body, signature, _ := strings.Cut(good, ".")
	other, err := newSessions(t.Context(), chat.directory.client, "other key")
	require.NoError(t, err)
	require.NoError(t, chat.directory.client.Set(t.Context(), "chat:secret", "another", 0).Err())
	stranger, err := newSessions(t.Context(), chat.directory.client, "")
	require.NoError(t, err)
	old := session{User{mira.as, "Mira", admin}, time.Now().Add(-sessionAge - time.Minute).Unix()}
	fresh := session{old.User, time.Now().Unix()}
	for name, tc := range map[string]struct {
		value string
		id    string
		ok    bool
	}{
		"as it was":          {good, mira.as, true},
		"of another user":    {good, "abcdefghijkl", false},
		"without signature":  {body, mira.as, false},
		"empty signature":    {body + ".", mira.as, false},
		"another body":       {stranger.sign(fresh)[:20] + "." + signature, mira.as, false},
		"another secret":     {stranger.sign(fresh), mira.as, false},
		"too old":            {chat.sessions.sign(old), mira.as, false},
		"the same, in time":  {chat.sessions.sign(fresh), mira.as, true},
		"of another process": {other.sign(fresh), mira.as, true},
		"empty":              {"", "", false},
	} {
		r := httptest.NewRequest("GET", "/api/session?as="+tc.id, nil)
		r.AddCookie(&http.Cookie{Name: cookiePrefix + tc.id, Value: tc.value})
		_, err := chat.sessions.user(r)
		require.Equal(t, tc.ok, err == nil, name)
	}
}

// Bug: a browser that keeps every user it ever was sends ever longer requests, until the server
// refuses all of them.
func TestBrowserKeepsFewUsers(t *testing.T) {
	t.Parallel()
	chat := startChat(t, nil)
	v := chat.visitor(t)
	where, err := url.Parse(chat.url + "/api/")
	require.NoError(t, err)
	v.http.Jar.SetCookies(where, []*http.Cookie{{Name: cookiePrefix + "strange", Value: "of another chat", Path: "/api/"}})
	var user User
	for range maxSessions + 3 {
		require.Equal(t, 201, v.call("POST", "session", map[string]string{"name": "Mira"}, &user))
	}
	require.Len(t, v.http.Jar.Cookies(where), maxSessions)
	v.as = user.ID
	require.Equal(t, 200, v.call("GET", "session", nil, nil))
}

func TestCrossOrigin(t *testing.T) {
	t.Parallel()
	chat := startChat(t, nil)
	v := chat.signedIn(t, "Mira", "")
	for name, tc := range map[string]struct {
		header, value string
		status        int
	}{
		"our page":         {"Sec-Fetch-Site", "same-origin", 201},
		"no browser":       {"X-Nothing", "", 201},
		"another site":     {"Sec-Fetch-Site", "cross-site", 403},
		"another port":     {"Sec-Fetch-Site", "same-site", 403},
		"an older browser": {"Origin", "https://example.com", 403},
	} {
		r := v.request("POST", "rooms/lounge/messages", map[string]string{"key": "cross-" + "origin-1", "text": "hello"})
		r.Header.Set(tc.header, tc.value)
		response, _ := v.do(r, nil)
		require.Equal(t, tc.status, response.StatusCode, name)
	}
}

// A site whose name points at this machine is of the same origin to a browser: its page could read and
// write everything.
func TestHost(t *testing.T) {
	t.Parallel()
	chat := startChat(t, func(c *config) { c.hosts = []string{"chat.example.com"} })
	v := chat.signedIn(t, "Mira", "")
	for host, status := range map[string]int{
		"localhost:8080": 200, "LOCALHOST": 200, "127.0.0.1:8080": 200, "[::1]:8080": 200, "192.168.1.5": 200,
		"chat.example.com": 200, "Chat.Example.com:443": 200,
		"evil.example.com": 421, "evil.example.com:8080": 421, "localhost.evil.example.com": 421,
		"127.0.0.1.evil.example.com": 421, "xchat.example.com": 421,
	} {
		for _, path := range []string{"session", "rooms"} {
			r := v.request("GET", path, nil)
			r.Host = host
			response, _ := v.do(r, nil)
			require.Equal(t, status == 421, response.StatusCode == 421, "%s %s", host, path)
		}
		r, err := http.NewRequestWithContext(t.Context(), "GET", chat.url+"/", nil)
		require.NoError(t, err)
		r.Host = host
		response, _ := v.do(r, nil)
		require.Equal(t, status, response.StatusCode, host)
	}
}

func TestHeaders(t *testing.T) {
	t.Parallel()
	chat := startChat(t, nil)
	v := chat.signedIn(t, "Mira", "")
	for path, kind := range map[string]string{
		"/": "text/html; charset=utf-8", "/app.js": "text/javascript; charset=utf-8", "/style.css": "text/css; charset=utf-8",
		"/icon.svg": "image/svg+xml", "/nothing": "text/plain; charset=utf-8", "/api/session?as=" + v.as: "application/json",
	} {
		r, err := http.NewRequestWithContext(t.Context(), "GET", chat.url+path, nil)
		require.NoError(t, err)
		response, _ := v.do(r, nil)
		require.Equal(t, kind, response.Header.Get("Content-Type"), path)
		for name, want := range map[string]string{
			"Content-Security-Policy": "default-src 'none'", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
		} {
			require.Contains(t, response.Header.Get(name), want, path)
		}
		require.NotContains(t, response.Header.Get("Content-Security-Policy"), "unsafe")
		if tag := response.Header.Get("Etag"); tag != "" {
			r.Header.Set("If-None-Match", tag)
			response, _ = v.do(r, nil)
			require.Equal(t, 304, response.StatusCode)
		}
	}
	require.Equal(t, 404, v.call("GET", "nothing", nil, nil))
	require.Equal(t, 405, v.call("GET", "rooms/lounge/messages", nil, nil))
}

// Pages ask for the rooms every few seconds; all of them together ask Redis once in a second.
func TestRoomsAreReadOnceForAllPages(t *testing.T) {
	t.Parallel()
	for _, embedded := range []bool{false, true} {
		chat := startChat(t, func(c *config) { c.embedded = embedded })
		v := chat.signedIn(t, "Mira", "")
		require.Equal(t, 201, v.say("ideas", "message-1", "hello"))
		before := chat.redis.CommandCount()
		var list struct {
			Instance string
			Process  int
			Embedded bool
			Rooms    []roomInfo
		}
		for range 20 {
			require.Equal(t, 200, v.call("GET", "rooms", nil, &list))
		}
		require.LessOrEqual(t, chat.redis.CommandCount()-before, 3*(1+len(defaultRooms)), "each of 20 requests has asked")
		require.Equal(t, chat.instance, list.Instance)
		require.Equal(t, os.Getpid(), list.Process)
		require.Equal(t, embedded, list.Embedded)
		require.Equal(t, "chat:room:ideas", list.Rooms[2].Stream)
		require.NotEmpty(t, list.Rooms[2].Last)
		require.Empty(t, list.Rooms[0].Last)
	}
}

// Redis is down: users get that message, and nothing more.
func TestRedisIsGone(t *testing.T) {
	t.Parallel()
	chat := startChat(t, func(c *config) { c.writeTimeout = 200 * time.Millisecond })
	v := chat.signedIn(t, "Mira", "")
	require.Equal(t, 201, v.say("lounge", "message-1", "hello"))
	chat.redis.Close()
	for _, path := range []string{"rooms/lounge/messages", "rooms/elsewhere", "rooms/elsewhere/typing"} {
		response, body := v.do(v.request("POST", path, map[string]string{"key": "message-2", "text": "hello"}), nil)
		require.Equal(t, 503, response.StatusCode)
		require.Equal(t, "1", response.Header.Get("Retry-After"))
		require.NotContains(t, body, "127.0.0.1")
	}
	require.NoError(t, chat.redis.Restart())
	redistest.Eventually(t, 20*time.Second, func() bool { return v.say("lounge", "message-2", "hello") == 201 }, "a message")
}
