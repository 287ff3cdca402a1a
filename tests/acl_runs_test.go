package tests

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/sse"
)

func init() {
	features["run-writer"] = func(t *testing.T, _, client *redis.Client, topic string) error {
		return aclWriteRun(aclRuns(t, client, topic))
	}
	features["run-viewer"] = aclViewRun
	features["run-operator"] = func(t *testing.T, admin, client *redis.Client, topic string) error {
		aclLoseRun(t, admin, topic)
		return aclOperateRuns(t, aclRuns(t, client, topic))
	}
}

func aclRuns(t *testing.T, client *redis.Client, name string) *sse.Runs[string] {
	t.Helper()
	hub, err := redischannels.NewHub(client, redischannels.HubConfig{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, hub.Close()) })
	runs, err := sse.NewRuns[string](hub, sse.RunsConfig{Name: name, WriterLease: 100 * time.Millisecond})
	require.NoError(t, err)
	return runs
}

// aclWriteRun writes a run and restarts it.
func aclWriteRun(runs *sse.Runs[string]) error {
	for range 2 {
		run, err := runs.Start(context.Background(), "a")
		if err != nil {
			return err
		}
		if err := errors.Join(run.Write(run.Context(), "p"), run.Flush(context.Background()), run.End(context.Background(), nil)); err != nil {
			return err
		}
	}
	return nil
}

// aclLoseRun leaves a run without a writer.
func aclLoseRun(t *testing.T, admin *redis.Client, name string) {
	t.Helper()
	runs := aclRuns(t, admin, name)
	run, err := runs.Start(t.Context(), "a")
	require.NoError(t, err)
	flushed(t, run, "p")
	for _, key := range admin.Keys(t.Context(), "{"+name+":*}:run:a").Val() {
		require.NoError(t, admin.HSet(t.Context(), key, "epoch", "9999999999999", "lease", "1").Err())
	}
	<-run.Context().Done()
	require.NoError(t, admin.ScriptFlush(t.Context()).Err())
}

// aclViewRun sees a run from its beginning to its end, which it finds.
func aclViewRun(t *testing.T, admin, client *redis.Client, name string) error {
	aclLoseRun(t, admin, name)
	problems := make(chan error, 100)
	handler, err := aclRuns(t, client, name).Handler(sse.RunsOptions[string]{
		Options: sse.Options[string]{OnError: func(err error) { problems <- err }},
		ID:      func(*http.Request) string { return "a" },
	})
	require.NoError(t, err)
	defer handler.Close()
	server := httptest.NewServer(handler)
	defer server.Close()
	done := make(chan error, 1)
	request, cancel := sseRequest(t, server.URL)
	defer cancel()
	go func() {
		response, err := http.DefaultClient.Do(request)
		if err != nil || response.StatusCode != http.StatusOK {
			return // there is a problem
		}
		defer response.Body.Close()
		done <- eachEvent(response.Body, func(e sseEvent) (bool, error) { return e.Name != sse.EventEnd, nil })
	}()
	select {
	case err := <-problems:
		return err
	case err := <-done:
		return err
	}
}

// aclOperateRuns looks at runs and stops one.
func aclOperateRuns(t *testing.T, runs *sse.Runs[string]) error {
	n := 0
	for info, err := range runs.List(t.Context()) {
		if err != nil {
			return err
		}
		require.Equal(t, sse.RunLost, info.Status)
		n++
	}
	require.Equal(t, 1, n)
	if err := runs.Stop(t.Context(), "a"); !errors.Is(err, sse.ErrRunEnded) {
		return err
	}
	return nil
}
