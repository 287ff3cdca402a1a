package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"os"
	"regexp"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/flaminco/redischannels/benchmarks/internal/local"
)

func TestMain(m *testing.M) {
	// The reader of watermill-redisstream sleeps for half a second after Close.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/ThreeDotsLabs/watermill-redisstream/pkg/redisstream.(*Subscriber).read"))
}

// testServer starts a server for one test. Without one the test is skipped, or fails when
// REQUIRE_REDIS=1 demands one.
func testServer(t *testing.T) *local.Redis {
	t.Helper()
	s, err := local.StartRedis(t.Context())
	if errors.Is(err, local.ErrNoServer) && (os.Getenv("REQUIRE_REDIS") != "1" || os.Getenv("REDIS_ADDR") != "") {
		t.Skipf("skipped: %v", err)
	}
	require.NoError(t, err)
	t.Cleanup(s.Stop)
	return s
}

func TestEveryRow(t *testing.T) {
	h := &harness{server: testServer(t), repetitions: 1, scale: 1000, progress: t.Logf}
	rep := report{Environment: newEnvironment(h.server)}
	all := chosen(regexp.MustCompile(""), true, true)
	for _, r := range all {
		if r.window > 0 {
			r.window = time.Duration(h.scale) * 250 * time.Millisecond
		}
		began := time.Now()
		results, err := h.run(t.Context(), r)
		require.NoError(t, err)
		require.Len(t, results, max(len(r.metrics), 1))
		for _, res := range results {
			require.Len(t, res.Peers, len(r.peers))
			for _, p := range res.Peers {
				require.Len(t, p.Values, 1)
				if r.window == 0 {
					require.Positive(t, p.Values[0], "%s of %s", res.Row, p.Name)
				}
				if r.name == "publish-1x1" && runtime.GOOS == "linux" {
					require.GreaterOrEqual(t, p.SystemCalls, 2.0, "%s writes each command and reads its reply", p.Name)
				}
			}
		}
		rep.Results = append(rep.Results, results...)
		t.Logf("%s took %s", r.name, time.Since(began))
	}
	var table bytes.Buffer
	require.NoError(t, rep.text(&table))
	for _, r := range all {
		require.Contains(t, table.String(), r.name)
	}
	require.NoError(t, rep.writeJSON(t.TempDir()+"/results.json"))

	chart := t.TempDir() + "/chart.svg"
	require.NoError(t, rep.writeChart(chart))
	data, err := os.ReadFile(chart)
	require.NoError(t, err)
	require.NoError(t, xml.Unmarshal(data, new(struct{})))
	for _, name := range []string{ours.name, redisStream.name, bare, bareRueidis, "publish-64x1"} {
		require.Contains(t, string(data), ">"+name+"<")
	}
}

// A harness that counts what was lost or repeated would favour the one that loses.
func TestTrialRefusesWhatIsNotExactlyOnce(t *testing.T) {
	s := testServer(t)
	for name, test := range map[string]struct {
		sent   []int
		reason string
	}{
		"all":     {sent: []int{0, 1, 2}},
		"lost":    {sent: []int{0, 2}, reason: "2 of 3 messages have arrived"},
		"twice":   {sent: []int{0, 1, 1, 2}, reason: "message 1 has arrived twice"},
		"foreign": {sent: []int{0, 1, 2, 3}, reason: "message 3 of 3"},
	} {
		t.Run(name, func(t *testing.T) {
			h := &harness{server: s, repetitions: 1, scale: 1, progress: t.Logf}
			_, err := h.run(t.Context(), row{name: name, peers: []peer{{name: name, messages: 3, run: func(tr *trial) error {
				for _, i := range test.sent {
					tr.countOne(uuid(i), payloadSize)
				}
				tr.values = []float64{1}
				return tr.check(false)
			}}}})
			if test.reason == "" {
				require.NoError(t, err)
			} else {
				require.ErrorContains(t, err, test.reason)
			}
		})
	}
}

func TestTrialRefusesWhatIsPending(t *testing.T) {
	h := &harness{server: testServer(t), repetitions: 1, scale: 1, progress: t.Logf}
	_, err := h.run(t.Context(), row{name: "pending", peers: []peer{{name: "pending", messages: 1, run: func(tr *trial) error {
		if err := tr.fill(); err != nil {
			return err
		}
		if err := tr.server.Client.Do(tr.ctx, "xreadgroup", "group", group, "c", "streams", tr.topic, ">").Err(); err != nil {
			return err
		}
		tr.countOne(uuid(0), payloadSize)
		return tr.check(true)
	}}}})
	require.ErrorContains(t, err, "1 entries are pending")
}

func TestMedian(t *testing.T) {
	require.Equal(t, 2.0, median([]float64{3, 1, 2}))
	require.Equal(t, 2.5, median([]float64{4, 1, 3, 2}))
}

func TestDecimal(t *testing.T) {
	for text, v := range map[string]float64{"0": 0, "999": 999.4, "1,000": 1000, "1,234,567": 1234567} {
		require.Equal(t, text, decimal(v))
	}
}
