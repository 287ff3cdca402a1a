package tests

import (
	"bufio"
	"errors"
	"fmt"
	"html"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/console"
	"github.com/flaminco/redischannels/inspect"
	"github.com/flaminco/redischannels/internal/redistest"
)

// site is a console behind an HTTP server, at /redis.
type site struct {
	*console.Console
	url     string
	browser *http.Client // keeps cookies
}

func newSite(t *testing.T, client redis.UniversalClient, authorize func(*http.Request) (console.Access, error)) *site {
	t.Helper()
	page, err := console.New(console.Config{
		Inspect: inspect.Config{Client: client, Actor: "console"}, Prefix: "/redis", Authorize: authorize,
	}, nil)
	require.NoError(t, err)
	mux := http.NewServeMux()
	mux.Handle("/redis/", page)
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	t.Cleanup(func() { require.NoError(t, page.Close()) })
	jar, err := cookiejar.New(nil)
	require.NoError(t, err)
	return &site{page, server.URL, &http.Client{Jar: jar}}
}

// operator may do everything.
func operator(*http.Request) (console.Access, error) {
	return console.Access{Act: true, Payloads: true, Name: "ann"}, nil
}

// get returns a page and its status.
func (s *site) get(t *testing.T, path string) (body string, status int) {
	t.Helper()
	response, err := s.browser.Get(s.url + path)
	require.NoError(t, err)
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	require.Equal(t, "DENY", response.Header.Get("X-Frame-Options"), path)
	require.Contains(t, response.Header.Get("Content-Security-Policy"), "script-src 'self'", path)
	return string(text), response.StatusCode
}

// post sends a form and follows the redirect, with headers in pairs.
func (s *site) post(t *testing.T, path string, form url.Values, headers ...string) (body string, status int) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.url+path, strings.NewReader(form.Encode()))
	require.NoError(t, err)
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	for i := 0; i < len(headers); i += 2 {
		request.Header.Set(headers[i], headers[i+1])
	}
	response, err := s.browser.Do(request)
	require.NoError(t, err)
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	return string(text), response.StatusCode
}

var hrefs = regexp.MustCompile(`href="([^"]*)"`)

// crawl returns all pages that links lead to, by their addresses.
func (s *site) crawl(t *testing.T) map[string]string {
	t.Helper()
	pages, left := map[string]string{}, []string{"/redis/"}
	for len(left) > 0 {
		path := left[0]
		left = left[1:]
		if _, seen := pages[path]; seen {
			continue
		}
		body, status := s.get(t, path)
		require.Equal(t, http.StatusOK, status, "%s: %s", path, body)
		pages[path] = body
		for _, found := range hrefs.FindAllStringSubmatch(body, -1) {
			link := html.UnescapeString(found[1])
			require.True(t, strings.HasPrefix(link, "/redis/"), "%s links to %s", path, link)
			left = append(left, link)
		}
	}
	return pages
}

const attack = `<script>alert("x")</script>`

// attackedTopic makes a topic whose name, groups, messages, delayed messages and dead letters are HTML.
func attackedTopic(t *testing.T, client *redis.Client) (topic string) {
	t.Helper()
	topic = redistest.Key(t) + `/<b>"'&?#%` + attack
	group := "g" + attack
	p, err := redischannels.NewPublisher(redischannels.PublisherConfig{Client: client}, nil)
	require.NoError(t, err)
	defer p.Close()
	msg := message.NewMessage("u"+attack, []byte("secret"+attack))
	msg.Metadata.Set("m"+attack, "v"+attack)
	require.NoError(t, p.Publish(topic, msg))
	sub := newSub(t, client, func(c *redischannels.SubscriberConfig) {
		c.ConsumerGroup, c.Consumer, c.MaxDeliveries = group, "c"+attack, 1
	})
	messages, err := sub.Subscribe(t.Context(), topic)
	require.NoError(t, err)
	received := <-messages
	require.True(t, redischannels.Reject(received, "reason"+attack))
	received.Nack()
	redistest.Eventually(t, soon, func() bool { return client.XLen(t.Context(), "{"+topic+"}:dead").Val() == 1 }, "a dead letter")
	sub.closeSoon(t)
	later := message.NewMessage("later", []byte("secret"+attack))
	later.Metadata.Set("_watermill_delayed_until", time.Now().Add(time.Hour).UTC().Format(time.RFC3339))
	require.NoError(t, p.Publish(topic, later))
	require.NoError(t, newInspector(t, client).Pause(t.Context(), topic, group, inspect.PauseOptions{Reason: "why" + attack}))
	return topic
}

// Every link of every page leads to a page, whatever is in Redis, and nothing of it is HTML of the page.
func TestConsole_EveryPageWithHostileNames(t *testing.T) {
	t.Parallel()
	client := redistest.Start(t).Client(t)
	topic := attackedTopic(t, client)
	s := newSite(t, client, operator)
	pages := s.crawl(t)
	shown := ""
	for path, body := range pages {
		require.NotContains(t, body, "<script>alert", path)
		require.NotContains(t, body, `<b>"`, path)
		shown += body
	}
	for _, part := range []string{topic, "g" + attack, "reason" + attack, "why" + attack, "secret" + attack, "m" + attack, "v" + attack} {
		require.Contains(t, html.UnescapeString(shown), part)
	}
	escaped := url.PathEscape(topic)
	for _, path := range []string{"/redis/doctor", "/redis/topics/" + escaped, "/redis/topics/" + escaped + "/messages",
		"/redis/topics/" + escaped + "/dead", "/redis/topics/" + escaped + "/delayed", "/redis/topics/" + escaped + "/groups/" + url.PathEscape("g"+attack)} {
		require.Contains(t, pages, path)
	}
}

// The doctor's page is about topics too, up to a number: an open page must not read a whole server.
func TestConsole_Doctor(t *testing.T) {
	t.Parallel()
	client := redistest.Start(t).Client(t)
	const topics = 200
	for n := range topics {
		require.NoError(t, client.XGroupCreateMkStream(t.Context(), fmt.Sprintf("topic-%03d", n), "billing", "0").Err())
	}
	body, status := newSite(t, client, nil).get(t, "/redis/doctor")
	require.Equal(t, http.StatusOK, status)
	require.Contains(t, body, "the group has no consumer that is alive")
	require.Regexp(t, `topic-\d{3} billing`, body)
	require.Contains(t, body, "only 300 topics and groups were checked")
	require.Equal(t, 150, strings.Count(body, "no consumer that is alive"))
}

// Without Config.Authorize no page shows a payload, metadata or a form that acts.
func TestConsole_HidesPayloads(t *testing.T) {
	t.Parallel()
	client := redistest.Start(t).Client(t)
	attackedTopic(t, client)
	s := newSite(t, client, nil)
	for path, body := range s.crawl(t) {
		require.NotContains(t, body, "secret", path)
		require.NotContains(t, body, "m&lt;script", path)
		require.NotContains(t, body, `method="post"`, path)
	}
}

func TestConsole_Refuses(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client(t)
	topic := redistest.Key(t)
	publish(t, client, topic, "a")
	require.NoError(t, newSub(t, client).SubscribeInitialize(topic))
	pause := "/redis/topics/" + url.PathEscape(topic) + "/groups/g/pause"
	form := url.Values{"minutes": {"0"}}
	paused := func() bool {
		stats, err := newSub(t, client).GroupStats(t.Context(), topic)
		require.NoError(t, err)
		return stats.Paused
	}
	for _, c := range []struct {
		name      string
		authorize func(*http.Request) (console.Access, error)
		headers   []string
		status    int
	}{
		{"read-only by default", nil, nil, http.StatusForbidden},
		{"denied", func(*http.Request) (console.Access, error) { return console.Access{Act: true}, console.ErrDenied }, nil, http.StatusForbidden},
		{"not known", func(*http.Request) (console.Access, error) { return console.Access{Act: true}, errors.New("who?") }, nil, http.StatusUnauthorized},
		{"name too long", func(*http.Request) (console.Access, error) {
			return console.Access{Act: true, Name: strings.Repeat("n", 257)}, nil
		}, nil, http.StatusBadRequest},
		{"form of another site", operator, []string{"Sec-Fetch-Site", "cross-site"}, http.StatusForbidden},
		{"form of another site, old browser", operator, []string{"Origin", "https://evil.example"}, http.StatusForbidden},
	} {
		s := newSite(t, client, c.authorize)
		_, status := s.post(t, pause, form, c.headers...)
		require.Equal(t, c.status, status, c.name)
		require.False(t, paused(), c.name)
	}
	s := newSite(t, client, operator)
	_, status := s.get(t, pause)
	require.Equal(t, http.StatusMethodNotAllowed, status)
	for path, want := range map[string]int{
		"/redis/topics/none": http.StatusNotFound, "/redis/topics/" + url.PathEscape(topic) + "/groups/none": http.StatusNotFound,
		"/redis/nothing": http.StatusNotFound, "/redis/topics/" + url.PathEscape(topic) + "/messages?after=x": http.StatusBadRequest,
	} {
		_, status := s.get(t, path)
		require.Equal(t, want, status, path)
	}
	server.Stop()
	body, status := s.get(t, "/redis/")
	require.Equal(t, http.StatusBadGateway, status)
	require.Contains(t, body, "Not available")
}

func TestConsole_PauseAndResume(t *testing.T) {
	t.Parallel()
	client := redistest.Start(t).Client(t)
	topic := redistest.Key(t)
	publish(t, client, topic, "a")
	sub := newSub(t, client)
	require.NoError(t, sub.SubscribeInitialize(topic))
	s := newSite(t, client, operator)
	group := "/redis/topics/" + url.PathEscape(topic) + "/groups/g"

	body, status := s.post(t, group+"/pause", url.Values{"minutes": {"5"}, "reason": {"the bank is down"}}, "Sec-Fetch-Site", "same-origin")
	require.Equal(t, http.StatusOK, status, body)
	require.Contains(t, body, "Paused for 5 minutes")
	require.Contains(t, body, "the bank is down")
	stats, err := sub.GroupStats(t.Context(), topic)
	require.NoError(t, err)
	require.True(t, stats.Paused)
	require.InDelta(t, 5*time.Minute, stats.PausedFor, float64(time.Minute))
	lines, err := client.XRange(t.Context(), auditOf(topic), "-", "+").Result()
	require.NoError(t, err)
	require.Equal(t, "ann", lines[0].Values["who"])

	for _, minutes := range []string{"-1", "x", "", "100001"} {
		body, status := s.post(t, group+"/pause", url.Values{"minutes": {minutes}})
		require.Equal(t, http.StatusBadRequest, status)
		require.Contains(t, body, "minutes must be a number of 0 to 100000")
	}
	_, status = s.post(t, strings.ReplaceAll(group, "groups/g", "groups/none")+"/pause", url.Values{"minutes": {"0"}})
	require.Equal(t, http.StatusNotFound, status)

	body, status = s.post(t, group+"/resume", nil)
	require.Equal(t, http.StatusOK, status)
	require.Contains(t, body, "Resumed.")
	stats, err = sub.GroupStats(t.Context(), topic)
	require.NoError(t, err)
	require.False(t, stats.Paused)
	body, _ = s.get(t, group)
	require.NotContains(t, body, "Resumed.", "it is said once")
}

// An open page gets the parts that have changed, and Close ends it.
func TestConsole_Live(t *testing.T) {
	t.Parallel()
	client := redistest.Start(t).Client(t)
	topic := redistest.Key(t)
	publish(t, client, topic, "a")
	require.NoError(t, newSub(t, client).SubscribeInitialize(topic))
	s := newSite(t, client, operator)
	page, _ := s.get(t, "/redis/topics/"+url.PathEscape(topic))
	live := regexp.MustCompile(`data-live="([^"]*)"`).FindStringSubmatch(page)
	require.NotNil(t, live)
	response, err := http.Get(s.url + html.UnescapeString(live[1]))
	require.NoError(t, err)
	defer response.Body.Close()
	require.Equal(t, "text/event-stream", response.Header.Get("Content-Type"))
	lines := bufio.NewScanner(response.Body)
	lines.Buffer(nil, 1<<20)
	next := func() string {
		for lines.Scan() {
			if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
				return data
			}
		}
		return ""
	}
	entries := func(n string) string { return `Entries\u003c/dt\u003e\u003cdd\u003e` + n + `\u003c` }
	require.Contains(t, next(), entries("1"))
	publish(t, client, topic, "b")
	require.Contains(t, next(), entries("2"))
	require.NoError(t, s.Close())
	require.Empty(t, next(), "the stream has ended")
	again, err := http.Get(s.url + "/redis/")
	require.NoError(t, err)
	defer again.Body.Close()
	require.Equal(t, http.StatusServiceUnavailable, again.StatusCode)
}

// Dead letters are counted, requeued and purged as the page says, and only those of the filter.
func TestConsole_RequeueAndPurge(t *testing.T) {
	t.Parallel()
	client := redistest.Start(t).Client(t)
	topic := redistest.Key(t)
	publish(t, client, topic, "a", "a", "b", "b", "b")
	sub := newSub(t, client)
	messages, err := sub.Subscribe(t.Context(), topic)
	require.NoError(t, err)
	for range 5 {
		msg := <-messages
		require.True(t, redischannels.Reject(msg, "reason "+string(msg.Payload)))
		msg.Nack()
	}
	dead := "{" + topic + "}:dead"
	redistest.Eventually(t, soon, func() bool { return client.XLen(t.Context(), dead).Val() == 5 }, "dead letters")
	sub.closeSoon(t)
	s := newSite(t, client, operator)
	base := "/redis/topics/" + url.PathEscape(topic)
	form := func(reason string, more ...string) url.Values {
		v := url.Values{"group": {"g"}, "reason": {reason}, "max": {"100"}, "rate": {"0"}}
		for i := 0; i < len(more); i += 2 {
			v.Set(more[i], more[i+1])
		}
		return v
	}
	for _, c := range []struct {
		action, text string
		form         url.Values
		status       int
		left         int64
	}{
		{"requeue", "2 dead letters would be requeued.", form("reason a", "dry", "yes"), http.StatusOK, 5},
		{"requeue", "1 dead letters would be requeued, there are more.", form("reason a", "dry", "yes", "max", "1"), http.StatusOK, 5},
		{"requeue", "max must be a number of 1 to 10000", form("reason a", "max", "0"), http.StatusBadRequest, 5},
		{"requeue", "take longer than a minute", form("reason a", "rate", "1"), http.StatusBadRequest, 5},
		{"requeue", "2 dead letters were requeued.", form("reason a"), http.StatusOK, 3},
		{"purge", "3 dead letters would be deleted.", form("reason b", "dry", "yes"), http.StatusOK, 3},
		{"purge", "type the name of the topic", form("reason b", "confirm", "another"), http.StatusBadRequest, 3},
		{"purge", "2 dead letters were deleted, there are more.", form("reason b", "max", "2", "confirm", topic), http.StatusOK, 1},
		{"purge", "0 dead letters were deleted.", form("reason a", "confirm", topic), http.StatusOK, 1},
	} {
		body, status := s.post(t, base+"/"+c.action, c.form)
		require.Equal(t, c.status, status, body)
		require.Contains(t, body, c.text)
		require.Equal(t, c.left, client.XLen(t.Context(), dead).Val(), c.text)
	}
	require.EqualValues(t, 2, client.XLen(t.Context(), "{"+topic+"}:return:g").Val())
}
