package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"runtime/pprof"
	"strconv"
	"strings"
	"time"

	"github.com/flaminco/redischannels/benchmarks/internal/local"
)

// result is the result of one kind of handler.
type result struct {
	outcome
	name        string
	clients     int
	deliveries  float64 // per second
	heap, stack float64 // bytes per client
	readers     int     // connections of Redis that wait for entries
	cpu         float64 // processors that the server process used while messages were under way
	redisCPU    float64
	clientsCPU  float64
}

// serve runs a server with one kind of handler.
func serve(ctx context.Context, k kind, l load, redisServer *local.Redis, clients *swarmProcess) (r result, err error) {
	r = result{name: k.name, clients: l.clients}
	if err := redisServer.Client.FlushAll(ctx).Err(); err != nil {
		return r, err
	}
	before := memory()
	open, err := k.open(redisServer.Addr, l.clients)
	if err != nil {
		return r, err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return r, errors.Join(err, open.end())
	}
	web := &http.Server{Handler: open.handler, ReadHeaderTimeout: patience}
	served := make(chan error, 1)
	go func() { served <- web.Serve(listener) }()
	defer func() {
		err = errors.Join(err, open.end(), web.Close())
		<-served
	}()
	begun, err := clients.order(order{Addr: listener.Addr().String(), Clients: l.clients, Streams: k.streams})
	if err != nil {
		return r, err
	}
	if begun.Connected != l.clients {
		return r, fmt.Errorf("%d of %d clients are connected: %s", begun.Connected, l.clients, begun.Err)
	}
	if k.name == kinds[1].name && l.profile != "" {
		stop, err := profile(l.profile)
		if err != nil {
			return r, err
		}
		defer stop()
	}
	published := int64(0)
	cpu, redisCPU, began := local.CPUTime(), redisTime(ctx, redisServer), time.Now()
	if open.write != nil {
		if published, err = publish(ctx, l, open.write); err != nil {
			return r, err
		}
	}
	r.outcome, err = clients.order(order{Expected: published})
	if err != nil {
		return r, err
	}
	elapsed := time.Since(began).Seconds()
	r.cpu = (local.CPUTime() - cpu).Seconds() / elapsed
	r.redisCPU = (redisTime(ctx, redisServer) - redisCPU).Seconds() / elapsed
	r.clientsCPU = r.CPU.Seconds() / elapsed
	r.deliveries = float64(r.Received) / elapsed
	now := memory()
	r.heap = (float64(now.HeapAlloc) - float64(before.HeapAlloc)) / float64(l.clients)
	r.stack = (float64(now.StackInuse) - float64(before.StackInuse)) / float64(l.clients)
	if r.readers, err = readers(ctx, redisServer); err != nil {
		return r, err
	}
	if _, err = clients.order(order{}); err != nil { // to leave
		return r, err
	}
	if r.Wrong > 0 || r.Received != published*int64(l.clients) || r.Err != "" {
		return r, fmt.Errorf("of %d deliveries %d have arrived, to %d clients wrongly %s", published*int64(l.clients), r.Received, r.Wrong, r.Err)
	}
	return r, nil
}

// publish writes messages at a steady rate and returns how many.
func publish(ctx context.Context, l load, write func(context.Context, message) error) (int64, error) {
	tick := time.NewTicker(time.Duration(float64(time.Second) / l.rate))
	defer tick.Stop()
	text := strings.Repeat("x", max(0, l.payload-60))
	n := max(1, int64(l.rate*l.duration.Seconds()))
	for i := range n {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return i, ctx.Err()
		}
		if err := write(ctx, message{Number: i, Sent: time.Now().UnixNano(), Text: text}); err != nil {
			return i, err
		}
	}
	return n, nil
}

// profile writes a CPU profile until stop is called.
func profile(name string) (stop func(), err error) {
	file, err := os.Create(name)
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(file); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return func() {
		pprof.StopCPUProfile()
		_ = file.Close()
	}, nil
}

// memory is that of this process without garbage.
func memory() runtime.MemStats {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m
}

// readers counts the connections that are blocked until there are entries.
func readers(ctx context.Context, server *local.Redis) (n int, err error) {
	list, err := server.Client.ClientList(ctx).Result()
	for line := range strings.Lines(list) {
		if strings.Contains(line, " flags=b ") {
			n++
		}
	}
	return n, err
}

// redisTime is the processor time that Redis has used.
func redisTime(ctx context.Context, server *local.Redis) (d time.Duration) {
	info, err := server.Info(ctx, "cpu")
	if err != nil {
		return 0
	}
	for _, name := range []string{"used_cpu_sys", "used_cpu_user"} {
		seconds, _ := strconv.ParseFloat(info[name], 64)
		d += time.Duration(seconds * float64(time.Second))
	}
	return d
}

// swarmProcess is the process of the clients.
type swarmProcess struct {
	cmd     *exec.Cmd
	in      io.WriteCloser
	orders  *json.Encoder
	answers *json.Decoder
}

func startSwarm() (*swarmProcess, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(program)
	cmd.Env = append(os.Environ(), childVariable+"=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	return &swarmProcess{cmd, in, json.NewEncoder(in), json.NewDecoder(out)}, cmd.Start()
}

// order gives an order and waits for the answer.
func (p *swarmProcess) order(o order) (answer outcome, err error) {
	if err = p.orders.Encode(o); err == nil {
		err = p.answers.Decode(&answer)
	}
	if err != nil {
		err = fmt.Errorf("process of the clients: %w", err)
	}
	return answer, err
}

// stop ends the process; at the latest by its input, which ends with this one as well.
func (p *swarmProcess) stop() {
	_ = p.in.Close()
	late := time.AfterFunc(patience, func() { _ = p.cmd.Process.Kill() })
	defer late.Stop()
	_ = p.cmd.Wait()
}
