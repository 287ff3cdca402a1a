package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flaminco/redischannels/benchmarks/internal/local"
)

// patience is how long the swarm waits for clients to connect, and for what was published.
const patience = 60 * time.Second

// order is a command to the swarm. It is a line on its standard input.
type order struct {
	Addr     string `json:"addr"`
	Clients  int    `json:"clients"`
	Streams  int    `json:"streams"`  // over which the clients are spread
	Expected int64  `json:"expected"` // published messages; then it reports, and leaves with the next order
}

// outcome is the report of the swarm: a line on its standard output when all are connected, and
// one when all messages have arrived, or none comes any more.
type outcome struct {
	Connected int           `json:"connected"`
	Received  int64         `json:"received"`
	Wrong     int64         `json:"wrong"` // clients that saw something twice, or not, or in another order
	P50       time.Duration `json:"p50"`
	P99       time.Duration `json:"p99"`
	Max       time.Duration `json:"max"`
	CPU       time.Duration `json:"cpu"` // of the swarm between the two answers
	Err       string        `json:"err"`
}

// swarm is the process of the clients: it connects them, counts what they receive, and
// says so.
type swarm struct {
	histogram histogram
	received  atomic.Int64
	wrong     atomic.Int64
	failure   atomic.Pointer[error]
}

// runSwarm obeys one order after another until its input ends.
func runSwarm(in io.Reader, out io.Writer) error {
	if err := local.RaiseFileLimit(); err != nil {
		return err
	}
	orders, answers := json.NewDecoder(in), json.NewEncoder(out)
	for {
		var begin, end, leave order
		if err := orders.Decode(&begin); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		s := &swarm{}
		ctx, cancel := context.WithCancel(context.Background())
		clients, connected, err := s.connect(ctx, begin)
		if err == nil {
			cpu := local.CPUTime()
			if err = answers.Encode(outcome{Connected: connected}); err == nil {
				err = orders.Decode(&end)
			}
			if err == nil {
				s.await(end.Expected * int64(begin.Clients))
				err = answers.Encode(s.outcome(connected, local.CPUTime()-cpu))
			}
			if err == nil {
				err = orders.Decode(&leave)
			}
			cancel()
			clients.Wait()
			if err == nil {
				err = answers.Encode(outcome{})
			}
		} else {
			cancel()
			clients.Wait()
			err = answers.Encode(outcome{Connected: connected, Err: err.Error()})
		}
		if err != nil {
			return err
		}
	}
}

// connect opens all streams, some at a time.
func (s *swarm) connect(ctx context.Context, o order) (clients *sync.WaitGroup, connected int, err error) {
	clients = new(sync.WaitGroup)
	opened := make(chan error)
	slots := make(chan struct{}, 64)
	for i := range o.Clients {
		clients.Go(func() {
			slots <- struct{}{}
			conn, events, err := open(ctx, o.Addr, streamPath(i%o.Streams))
			<-slots
			opened <- err
			if err == nil {
				s.read(events)
				_ = conn.Close()
			}
		})
	}
	for range o.Clients {
		if e := <-opened; e != nil {
			err = e
		} else {
			connected++
		}
	}
	return clients, connected, err
}

// open sends a request and reads up to the first event, which shows that the client is
// live. net/http would need several times the processor and memory.
func open(ctx context.Context, addr, path string) (net.Conn, *bufio.Reader, error) {
	conn, err := (&net.Dialer{Timeout: patience}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, nil, err
	}
	context.AfterFunc(ctx, func() { _ = conn.Close() })
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(conn, "GET "+path+" HTTP/1.1\r\nHost: "+addr+"\r\nAccept: text/event-stream\r\n\r\n"); err != nil {
		return nil, nil, err
	}
	lines := bufio.NewReaderSize(conn, 2048)
	status, err := lines.ReadString('\n')
	if err != nil {
		return nil, nil, err
	}
	if want := "HTTP/1.1 " + strconv.Itoa(http.StatusOK); len(status) < len(want) || status[:len(want)] != want {
		return nil, nil, fmt.Errorf("the server replies %q", status)
	}
	for live := false; ; {
		line, err := lines.ReadSlice('\n')
		if err != nil {
			return nil, nil, err
		}
		if bytes.HasPrefix(line, []byte("id:")) || bytes.HasPrefix(line, []byte(": ready")) {
			live = true
		} else if live && len(line) == 1 {
			return conn, lines, conn.SetReadDeadline(time.Time{})
		}
	}
}

// read counts messages until the stream ends. An event is one chunk, so no line of it is
// broken.
func (s *swarm) read(lines *bufio.Reader) {
	next, right := int64(0), true
	for {
		line, err := lines.ReadSlice('\n')
		if err != nil {
			if !right {
				s.wrong.Add(1)
			}
			return
		}
		data, ok := bytes.CutPrefix(line, []byte("data: "))
		if !ok {
			continue
		}
		var m message
		if err := m.scan(data); err != nil {
			s.failure.Store(&err)
		}
		s.histogram.add(time.Since(time.Unix(0, m.Sent)))
		if right && m.Number != next {
			right = false
			s.wrong.Add(1)
		}
		next = m.Number + 1
		s.received.Add(1)
	}
}

// message is a published message: 256 bytes or more of JSON. It begins with its numbers, so that
// clients need not decode all of it.
type message struct {
	Number int64  `json:"n"`
	Sent   int64  `json:"t"` // nanoseconds since 1970, by the clock that all processes share
	Text   string `json:"text"`
}

func (m *message) scan(data []byte) error {
	_, rest, ok := bytes.Cut(data, []byte(`"n":`))
	number, rest, ok2 := bytes.Cut(rest, []byte(`,"t":`))
	sent, _, ok3 := bytes.Cut(rest, []byte(`,`))
	if !ok || !ok2 || !ok3 {
		return fmt.Errorf("not a message: %.40q", data)
	}
	var err1, err2 error
	m.Number, err1 = strconv.ParseInt(string(number), 10, 64)
	m.Sent, err2 = strconv.ParseInt(string(sent), 10, 64)
	return errors.Join(err1, err2)
}

// await returns when this many messages have arrived, or nothing comes any more.
func (s *swarm) await(expected int64) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	seen, since := s.received.Load(), time.Now()
	for s.received.Load() < expected {
		<-tick.C
		if now := s.received.Load(); now != seen {
			seen, since = now, time.Now()
		} else if time.Since(since) > 5*time.Second {
			return
		}
	}
}

func (s *swarm) outcome(connected int, cpu time.Duration) outcome {
	o := outcome{
		Connected: connected, Received: s.received.Load(), Wrong: s.wrong.Load(), CPU: cpu,
		P50: s.histogram.quantile(0.5), P99: s.histogram.quantile(0.99), Max: s.histogram.quantile(1 - 1e-12),
	}
	if err := s.failure.Load(); err != nil {
		o.Err = (*err).Error()
	}
	return o
}

// childVariable in the environment makes a process of this program the swarm.
const childVariable = "SSELOAD_SWARM"

// becomeSwarm does not return in such a process.
func becomeSwarm() {
	if os.Getenv(childVariable) == "" {
		return
	}
	if err := runSwarm(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "sseload: clients:", err)
		os.Exit(1)
	}
	os.Exit(0)
}
