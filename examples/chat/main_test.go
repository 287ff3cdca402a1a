package main

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/redistest"
)

func TestMain(m *testing.M) {
	redis.SetLogger(quiet{})
	redistest.Main(m)
}

func TestBadStart(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = taken.Close() })
	for name, tc := range map[string]struct {
		args   []string
		redis  string
		code   int
		stderr string
	}{
		"help":          {[]string{"-h"}, "", exitOK, "REDIS_URL"},
		"unknown flag":  {[]string{"-x"}, "", exitUsage, "Usage: chat"},
		"argument":      {[]string{"lounge"}, "", exitUsage, "takes no arguments"},
		"rate":          {[]string{"-rate", "0"}, "", exitUsage, "-rate"},
		"rate NaN":      {[]string{"-rate", "NaN"}, "", exitUsage, "-rate"},
		"taken address": {[]string{"-addr", taken.Addr().String()}, "", exitFailed, "is taken; choose another one, such as -addr localhost:8081"},
		"no address":    {[]string{"-addr", "8080"}, "", exitFailed, "-addr must look like"},
		"no URL":        {[]string{"-addr", "127.0.0.1:0"}, "localhost:6379", exitFailed, "REDIS_URL must look like"},
		"broken URL":    {[]string{"-addr", "127.0.0.1:0"}, "redis://user:secret@local host:1", exitFailed, "REDIS_URL must look like"},
		"no server":     {[]string{"-addr", "127.0.0.1:0"}, "redis://:secret@127.0.0.1:1", exitFailed, "127.0.0.1:1 does not answer"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var stdout, stderr bytes.Buffer
			require.Equal(t, tc.code, command{tc.args, &stdout, &stderr, tc.redis, ""}.run())
			require.Contains(t, stderr.String(), tc.stderr)
			require.NotContains(t, stdout.String()+stderr.String(), "secret")
		})
	}
}

// As a newcomer starts it: no Redis, no flags but the port. A signal ends it soon, also while a
// page follows a room.
func TestEmbeddedStartAndSignal(t *testing.T) {
	t.Parallel()
	env, opened := []string{"REDIS_URL=", "CHAT_ADMIN_KEY=", "CHAT_ARGS=-addr\n127.0.0.1:0"}, ""
	if runtime.GOOS == "linux" {
		dir := t.TempDir()
		opened = filepath.Join(dir, "opened")
		require.NoError(t, os.WriteFile(filepath.Join(dir, "xdg-open"), []byte("#!/bin/sh\necho \"$1\" >"+opened+"\nexec sleep 60\n"), 0o700))
		env = append(env, env[2]+"\n-open", "PATH="+dir+":"+os.Getenv("PATH"))
	}
	child := redistest.StartChild(t, chatChild, env...)
	require.Contains(t, child.WaitLine("Redis: ", 20*time.Second), "embedded")
	key, _, _ := strings.Cut(child.WaitLine("Admin key: ", 20*time.Second), " ")
	address, _, _ := strings.Cut(child.WaitLine("Chat: ", 20*time.Second), " ")

	v := (&testChat{url: address}).visitor(t)
	response, err := v.http.Get(address)
	require.NoError(t, err)
	body, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	require.NoError(t, response.Body.Close())
	require.Equal(t, http.StatusOK, response.StatusCode)
	require.Contains(t, string(body), "<title>Chat</title>")

	var user User
	require.Equal(t, 201, v.call("POST", "session", map[string]string{"name": "Ana", "key": key}, &user))
	v.as = user.ID
	require.Equal(t, admin, user.Role)
	events, stop := v.follow("rooms/lounge/events", "")
	defer stop()
	require.Equal(t, 201, v.say("lounge", "message-1", "hello"))
	require.Contains(t, next(t, events), "hello")

	if opened != "" {
		redistest.Eventually(t, 20*time.Second, func() bool {
			page, _ := os.ReadFile(opened)
			return string(page) == address+"\n"
		}, "the browser")
	}
	child.Terminate()
	require.NoError(t, child.Wait(5*time.Second))
}
