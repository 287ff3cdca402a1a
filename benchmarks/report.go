package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/flaminco/redischannels/benchmarks/internal/local"
)

// report is a whole run.
type report struct {
	Environment environment `json:"environment"`
	Results     []result    `json:"results"`
}

// environment is the environment of the figures.
type environment struct {
	OS         string            `json:"os"`
	Arch       string            `json:"arch"`
	GOMAXPROCS int               `json:"gomaxprocs"`
	Go         string            `json:"go"`
	Redis      string            `json:"redis"`
	Modules    map[string]string `json:"modules"`
	Payload    int               `json:"payload_bytes"`
}

func newEnvironment(s *local.Redis) environment {
	env := environment{
		OS: runtime.GOOS, Arch: runtime.GOARCH, GOMAXPROCS: runtime.GOMAXPROCS(0),
		Go: runtime.Version(), Redis: s.Version, Modules: map[string]string{}, Payload: payloadSize,
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			switch m.Path {
			case "github.com/ThreeDotsLabs/watermill", "github.com/ThreeDotsLabs/watermill-redisstream", "github.com/redis/go-redis/v9", "github.com/redis/rueidis":
				env.Modules[m.Path] = m.Version
			}
		}
	}
	return env
}

func (e environment) String() string {
	parts := []string{
		fmt.Sprintf("%s/%s, GOMAXPROCS %d", e.OS, e.Arch, e.GOMAXPROCS),
		e.Go, "redis " + e.Redis, fmt.Sprintf("payloads of %d bytes", e.Payload),
	}
	for path, version := range e.Modules {
		parts = append(parts, strings.TrimPrefix(path, "github.com/")+" "+version)
	}
	slices.Sort(parts[4:])
	return strings.Join(parts, "; ")
}

// text writes the table.
func (r report) text(out io.Writer) error {
	fmt.Fprintln(out, r.Environment)
	fmt.Fprintln(out, "Medians; ratio: of this library to the peer, median of the repetitions' ratios (min - max).")
	fmt.Fprintln(out)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "row\tpeer\tmedian\tmin - max\tratio\taim\tCPU µs/msg\tallocs/msg\tB/msg\tcommands/msg\treads+writes/msg")
	for _, res := range r.Results {
		for i, p := range res.Peers {
			name := ""
			if i == 0 {
				name = res.Row
			}
			fmt.Fprintf(w, "%s\t%s\t%s %s\t%s\t%s\t%s\t%s\n", name, p.Name,
				decimal(median(p.Values)), res.Unit, spread(p.Values), p.ratio(), res.aim(i), p.costs())
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return r.commands(out)
}

// commands writes which commands the messages of this library have cost. Those that less than
// one message in two thousand needs are left out.
func (r report) commands(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\nrow\tcommands per message of the first peer")
	for _, res := range r.Results {
		counts := res.Peers[0].ByCommand
		var parts []string
		for _, name := range slices.SortedFunc(maps.Keys(counts), func(a, b string) int { return cmp.Compare(counts[b], counts[a]) }) {
			if counts[name] >= 0.0005 {
				parts = append(parts, fmt.Sprintf("%s %.4f", name, counts[name]))
			}
		}
		if len(parts) > 0 {
			fmt.Fprintf(w, "%s\t%s\n", res.Row, strings.Join(parts, ", "))
		}
	}
	return w.Flush()
}

func spread(values []float64) string {
	return decimal(slices.Min(values)) + " - " + decimal(slices.Max(values))
}

func (p peerResult) ratio() string {
	if p.Ratio == nil {
		return ""
	}
	return fmt.Sprintf("%.2fx (%.2f - %.2f)", p.Ratio.Median, p.Ratio.Min, p.Ratio.Max)
}

// aim returns the aim and whether it is met.
func (r result) aim(i int) string {
	met := map[bool]string{true: "met", false: "MISSED"}
	p := r.Peers[i]
	switch {
	case i == 0 && r.Most > 0:
		return fmt.Sprintf("<= %g %s", r.Most, met[median(p.Values) <= r.Most])
	case i == 0:
		return ""
	case p.AtMost > 0:
		return fmt.Sprintf("<= %gx %s", p.AtMost, met[p.Ratio.Median <= p.AtMost])
	case p.Least > 0:
		return fmt.Sprintf(">= %gx %s", p.Least, met[p.Ratio.Median >= p.Least])
	}
	return ""
}

func (p peerResult) costs() string {
	if p.Allocations == 0 {
		return "\t\t\t\t"
	}
	return fmt.Sprintf("%.2f\t%.1f\t%.0f\t%.3f\t%.3f", p.CPU, p.Allocations, p.Bytes, p.Commands, p.SystemCalls)
}

// decimal writes a number with separators between thousands.
func decimal(v float64) string {
	s := fmt.Sprintf("%.0f", v)
	for at := len(s) - 3; at > 0; at -= 3 {
		s = s[:at] + "," + s[at:]
	}
	return s
}

// writeJSON writes the report to a file.
func (r report) writeJSON(file string) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(data, '\n'), 0o644)
}
