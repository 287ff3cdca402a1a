package main

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/redistest"
)

func TestMain(m *testing.M) { redistest.Main(m) }

// Each program does what it says, on the embedded server and on a real one, and leaves nothing
// behind.
func TestPrograms(t *testing.T) {
	ends := map[string][]string{
		"queue":      {"billed order 1: 10", "billed order 5: 50"},
		"background": {"billed 20 orders in 26 tries"},
		"pods":       {"together 300 of 300"},
		"manual":     {"order 2, delivery 1: again", "order 3, delivery 1: rejected", "order 2, delivery 2: acknowledged"},
		"notify":     {"screen: order 7 was shipped", "mailer: order 7 was shipped"},
		"replay":     {"is order 3", ": order 2\n", ": order 3\n", ": order 4\n"},
	}
	require.Len(t, ends, len(programs))
	server := redistest.Start(t)
	for _, p := range programs {
		for name, url := range map[string]string{"embedded": "", "real": "redis://" + server.Addr()} {
			t.Run(p.name+" "+name, func(t *testing.T) {
				var out bytes.Buffer
				require.NoError(t, run(t.Context(), url, []string{p.name}, &out))
				for _, want := range ends[p.name] {
					require.Contains(t, out.String(), want)
				}
				if p.name == "replay" {
					require.Equal(t, 3, strings.Count(out.String(), "after "), "no gap and nothing twice")
				}
			})
		}
	}
	require.Empty(t, server.Client(t).Keys(context.Background(), "*").Val())
}

func TestArguments(t *testing.T) {
	var out bytes.Buffer
	require.NoError(t, run(t.Context(), "", nil, &out))
	for _, p := range programs {
		require.Contains(t, out.String(), p.name)
	}
	require.ErrorContains(t, run(t.Context(), "", []string{"nothing"}, &out), "nothing")
	require.ErrorContains(t, run(t.Context(), "postgres://user:secret@localhost", []string{"queue"}, &out), "REDIS_URL")
	err := run(t.Context(), "redis://user:secret@127.0.0.1:1", []string{"queue"}, &out)
	require.ErrorContains(t, err, "127.0.0.1:1")
	require.NotContains(t, err.Error(), "secret")
}
