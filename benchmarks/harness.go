package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/pprof"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/flaminco/redischannels/benchmarks/internal/local"
)

// trialTimeout bounds one repetition of one peer, its preparation and checks included.
const trialTimeout = 2 * time.Minute

// harness runs rows on one server.
type harness struct {
	server      *local.Redis
	repetitions int
	scale       int // divides the numbers of messages and the windows
	profiles    string
	progress    func(format string, args ...any)
	trials      int
}

// result is the result of a row.
type result struct {
	Row         string       `json:"row"`
	Unit        string       `json:"unit"`
	Repetitions int          `json:"repetitions"`
	Payload     int          `json:"payload_bytes"`
	Most        float64      `json:"most,omitempty"`
	Peers       []peerResult `json:"peers"`
}

type peerResult struct {
	Name     string    `json:"name"`
	Messages int       `json:"messages"`
	Values   []float64 `json:"values"` // one per repetition
	// Per message, medians. They include what the harness itself needs.
	CPU         float64 `json:"cpu_microseconds_per_message,omitempty"` // of the client
	Allocations float64 `json:"allocations_per_message,omitempty"`
	Bytes       float64 `json:"bytes_per_message,omitempty"`
	Commands    float64 `json:"commands_per_message,omitempty"`
	SystemCalls float64 `json:"reads_and_writes_per_message,omitempty"` // of the client, on Linux
	// ByCommand are the means of the same by command. A transaction counts MULTI, EXEC and
	// what is in it.
	ByCommand map[string]float64 `json:"commands_per_message_by_command,omitempty"`
	// Ratio is that of the first peer to this one: the median of the ratios of the repetitions.
	// Disturbances of the machine affect both.
	Ratio *ratio  `json:"ratio,omitempty"`
	Least float64 `json:"least,omitempty"`
	// AtMost is the aim of rows where less is better.
	AtMost float64 `json:"at_most,omitempty"`
}

type ratio struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

// measured is the result of one peer, one element per repetition.
type measured struct {
	values                            [][]float64 // by metric of the row
	cpu, allocations, bytes, commands []float64
	calls                             []float64
	byCommand                         map[string]float64 // the sum of all repetitions
}

// add adds a repetition.
func (m *measured) add(t *trial) {
	for i, value := range t.values {
		m.values[i] = append(m.values[i], value)
	}
	count := float64(t.deliveries())
	m.cpu = append(m.cpu, float64(t.cpu.Nanoseconds())/1000/count)
	m.allocations = append(m.allocations, float64(t.mallocs)/count)
	m.bytes = append(m.bytes, float64(t.allocated)/count)
	m.commands = append(m.commands, float64(t.commands)/count)
	m.calls = append(m.calls, float64(t.calls)/count)
	for name, calls := range t.byCommand {
		m.byCommand[name] += float64(calls) / count
	}
}

// run runs the repetitions of a row, all peers in turn in each of them. Every repetition
// begins with another peer, so that none has always the same neighbor.
func (h *harness) run(ctx context.Context, r row) ([]result, error) {
	if r.metrics == nil {
		r.metrics = []metric{{}}
	}
	n := h.repetitions
	if r.repetitions > 0 {
		n = min(n, r.repetitions)
	}
	all := make([]measured, len(r.peers))
	for i := range all {
		all[i] = measured{values: make([][]float64, len(r.metrics)), byCommand: make(map[string]float64)}
	}
	for rep := range n {
		for i := range r.peers {
			k := (rep + i) % len(r.peers)
			t, err := h.trial(ctx, r, r.peers[k], rep)
			if err != nil {
				return nil, fmt.Errorf("%s, %s, repetition %d: %w", r.name, r.peers[k].name, rep+1, err)
			}
			if len(t.values) != len(r.metrics) {
				return nil, fmt.Errorf("%s, %s: %d values for %d metrics", r.name, r.peers[k].name, len(t.values), len(r.metrics))
			}
			all[k].add(t)
			h.progress("%s %d/%d %s: %.0f %s", r.name, rep+1, n, r.peers[k].name, t.values, r.unit)
		}
	}
	results := make([]result, len(r.metrics))
	for i := range results {
		results[i] = r.result(i, all, h.messages)
	}
	return results, nil
}

// result makes the result of one metric.
func (r row) result(metric int, all []measured, messages func(peer) int) result {
	m := r.metrics[metric]
	res := result{
		Row: strings.TrimSuffix(r.name+"-"+m.name, "-"), Unit: cmp.Or(m.unit, r.unit), Payload: cmp.Or(r.payload, payloadSize),
		Repetitions: len(all[0].values[metric]), Most: cmp.Or(m.most, r.most),
	}
	for i, p := range r.peers {
		values := all[i].values[metric]
		pr := peerResult{Name: p.name, Messages: messages(p), Values: values, AtMost: p.atMost}
		if metric == 0 {
			pr.Least = p.least
		}
		if p.name == m.against {
			pr.AtMost = m.atMost
		}
		if r.window == 0 && metric == 0 {
			pr.CPU, pr.Allocations = median(all[i].cpu), median(all[i].allocations)
			pr.Bytes, pr.Commands = median(all[i].bytes), median(all[i].commands)
			pr.SystemCalls = median(all[i].calls)
			pr.ByCommand = all[i].byCommand
			for name := range pr.ByCommand {
				pr.ByCommand[name] /= float64(len(values))
			}
		}
		if i > 0 {
			ratios := make([]float64, len(values))
			for k := range ratios {
				ratios[k] = all[0].values[metric][k] / values[k]
			}
			pr.Ratio = &ratio{median(ratios), slices.Min(ratios), slices.Max(ratios)}
		}
		res.Peers = append(res.Peers, pr)
	}
	return res
}

func (h *harness) messages(p peer) int {
	return max(1, p.messages/h.scale)
}

// trial runs one peer once on an empty server.
func (h *harness) trial(ctx context.Context, r row, p peer, rep int) (_ *trial, err error) {
	ctx, cancel := context.WithTimeout(ctx, trialTimeout)
	defer cancel()
	if err := h.server.Client.FlushAll(ctx).Err(); err != nil {
		return nil, err
	}
	h.trials++
	t := &trial{
		ctx:     ctx,
		server:  h.server,
		topic:   fmt.Sprintf("bench-%d", h.trials),
		row:     r,
		n:       h.messages(p),
		scale:   h.scale,
		window:  r.window / time.Duration(h.scale),
		done:    make(chan struct{}),
		abort:   cancel,
		payload: bytes.Repeat([]byte{'x'}, cmp.Or(r.payload, payloadSize)),
	}
	if r.window > 0 {
		t.n = p.messages // these are subscriptions
	}
	t.seen = make([]atomic.Bool, t.n*cmp.Or(r.copies, 1))
	stop, err := h.profile(r, p, rep)
	if err != nil {
		return nil, err
	}
	err = errors.Join(p.run(t), stop())
	for _, c := range t.clients {
		_ = c.Close() // watermill-redisstream has closed its own
	}
	return t, err
}

// profile begins a CPU profile of one trial if profiles are asked for.
func (h *harness) profile(r row, p peer, rep int) (stop func() error, err error) {
	if h.profiles == "" {
		return func() error { return nil }, nil
	}
	name := fmt.Sprintf("%s_%s_%d.pprof", strings.ReplaceAll(r.name, "/", "_"), strings.ReplaceAll(p.name, " ", "-"), rep+1)
	f, err := os.Create(filepath.Join(h.profiles, name))
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() error {
		pprof.StopCPUProfile()
		return f.Close()
	}, nil
}

func median(values []float64) float64 {
	v := slices.Sorted(slices.Values(values))
	mid := len(v) / 2
	if len(v)%2 == 1 {
		return v[mid]
	}
	return (v[mid-1] + v[mid]) / 2
}
