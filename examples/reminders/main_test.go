package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/examples/internal/serve"
	"github.com/flaminco/redischannels/internal/redistest"
)

func TestMain(m *testing.M) { redistest.Main(m) }

// output is the output of the service.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) count(line string) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return strings.Count(o.text.String(), line)
}

// start runs the service until stop is called.
func start(t *testing.T, redisURL string, out *output) (url string, stop func()) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- serve.Run(ctx, redisURL, listener, out, run) }()
	return "http://" + listener.Addr().String() + "/reminders", sync.OnceFunc(func() {
		cancel()
		require.NoError(t, <-ended)
	})
}

func call(t *testing.T, method, url, body string, into any) int {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	require.NoError(t, err)
	response, err := http.DefaultClient.Do(request)
	require.NoError(t, err)
	defer response.Body.Close()
	if into != nil {
		require.NoError(t, json.NewDecoder(response.Body).Decode(into))
	}
	return response.StatusCode
}

func TestReminders_SurviveTheService(t *testing.T) {
	server := redistest.Start(t)
	out := new(output)
	url, stop := start(t, "redis://"+server.Addr(), out)
	defer stop()
	var first, second struct{ ID string }
	require.Equal(t, http.StatusCreated, call(t, "POST", url, `{"text":"tea","in":"1500ms"}`, &first))
	require.Equal(t, http.StatusCreated, call(t, "POST", url, `{"text":"never","in":"1h"}`, &second))
	require.Equal(t, http.StatusCreated, call(t, "POST", url, `{"text":"now"}`, nil))
	require.Equal(t, http.StatusBadRequest, call(t, "POST", url, `{"text":"x","in":"soon"}`, nil))
	require.Equal(t, http.StatusBadRequest, call(t, "POST", url, `{`, nil))
	var list []struct{ ID, Text string }
	require.Equal(t, http.StatusOK, call(t, "GET", url, "", &list))
	require.Len(t, list, 2)
	require.Equal(t, "tea", list[0].Text)
	require.Equal(t, first.ID, list[0].ID)
	require.Equal(t, http.StatusNoContent, call(t, "DELETE", url+"/"+second.ID, "", nil))
	require.Equal(t, http.StatusNotFound, call(t, "DELETE", url+"/"+second.ID, "", nil))
	redistest.Eventually(t, 10*time.Second, func() bool { return out.count("reminder: now\n") == 1 }, "a reminder for now")

	stop()
	_, stop = start(t, "redis://"+server.Addr(), out)
	defer stop()
	redistest.Eventually(t, 30*time.Second, func() bool { return out.count("reminder: tea\n") == 1 }, "the reminder of the process before")
	require.Zero(t, out.count("never"))
}

func TestReminders_Recurring(t *testing.T) {
	server := redistest.Start(t)
	out := new(output)
	url, stop := start(t, "redis://"+server.Addr(), out)
	defer stop()
	var stored struct{ ID string }
	require.Equal(t, http.StatusBadRequest, call(t, "POST", url, `{"text":"x","cron":"never"}`, nil))
	require.Equal(t, http.StatusCreated, call(t, "POST", url, `{"text":"stretch","cron":"@every 1s","zone":"Europe/Berlin"}`, &stored))
	redistest.Eventually(t, 30*time.Second, func() bool { return out.count("reminder: stretch\n") >= 2 }, "it comes again")
	require.Equal(t, http.StatusNoContent, call(t, "DELETE", url+"/"+stored.ID, "", nil))
	require.Equal(t, http.StatusNotFound, call(t, "DELETE", url+"/"+stored.ID, "", nil))
	var list []struct{ ID string }
	require.Equal(t, http.StatusOK, call(t, "GET", url, "", &list))
	require.Empty(t, list)
}

func TestReminders_EmbeddedServer(t *testing.T) {
	out := new(output)
	url, stop := start(t, "", out)
	defer stop()
	require.Equal(t, http.StatusCreated, call(t, "POST", url, `{"text":"tea","in":"200ms"}`, nil))
	redistest.Eventually(t, 10*time.Second, func() bool { return out.count("reminder: tea\n") == 1 }, "the reminder")
}
