package redistest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// adminUser may do everything, whatever a test does to the default user.
	adminUser = "redistest-admin"

	// startTimeout bounds one start, from the fork to the first reply. It is far above the
	// usual 30 ms, because a loaded machine with the race detector on is slow.
	startTimeout = 20 * time.Second

	// stopTimeout is how long a server may take to end by itself before it is killed.
	stopTimeout = 3 * time.Second

	// Ports are taken below the ranges from which Linux (32768) and macOS (49152) serve
	// outgoing connections. While a server is stopped, a client that dials its port from the
	// same range can be given that very port and connect to itself; the server could then
	// not come back.
	minPort, maxPort = 12000, 32000
)

var (
	errNoServer  = errors.New("no redis-server found")
	errNoTLS     = errors.New("this redis-server is built without TLS")
	errPortTaken = errors.New("the port is taken")
)

// process is one redis-server: its directory, port and configuration stay, while the
// operating system's process comes and goes with start and stop.
type process struct {
	conf          config
	binary        string
	dir           string
	port          int
	adminPassword string
	certs         *certificates

	mu   sync.Mutex    // serialises start and stop, guards cmd and done
	cmd  *exec.Cmd     // nil while stopped
	done chan struct{} // closed when cmd has ended
}

// launch starts a server on a port of its own and waits until it replies.
func launch(conf config) (_ *process, err error) {
	binary, err := findBinary(conf.binary)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "redistest-")
	if err != nil {
		return nil, err
	}
	p := &process{conf: conf, binary: binary, dir: dir, adminPassword: rand.Text()}
	defer func() {
		if err != nil {
			p.destroy()
		}
	}()
	if conf.tls {
		if p.certs, err = newCertificates(dir); err != nil {
			return nil, err
		}
	}
	// The port is free when it is checked, and may be taken a moment later by another test
	// binary; the server says so and another port is tried.
	for range 20 {
		if p.port, err = freePort(); err != nil {
			return nil, err
		}
		if err = p.start(); !errors.Is(err, errPortTaken) {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	return p, nil
}

// findBinary resolves the server's binary: the one asked for, then REDIS_SERVER, then PATH.
// A binary that was named but does not exist is an error of its own, never a skipped test.
func findBinary(asked string) (string, error) {
	for _, name := range []string{asked, os.Getenv("REDIS_SERVER")} {
		if name != "" {
			return exec.LookPath(name)
		}
	}
	for _, name := range []string{"redis-server", "valkey-server"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", errNoServer
}

// freePort returns a port of the loopback interface on which no process listens.
func freePort() (int, error) {
	var err error
	for range 100 {
		port := minPort + mathrand.IntN(maxPort-minPort)
		var l net.Listener
		if l, err = net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port))); err == nil {
			return port, l.Close()
		}
	}
	return 0, fmt.Errorf("no free port: %w", err)
}

func (p *process) addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(p.port)) }

func (p *process) logFile() string { return filepath.Join(p.dir, "server.log") }

// start runs the server and returns when it replies. It is an error when it already runs.
func (p *process) start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd != nil {
		return errors.New("the server is already running")
	}
	confFile := filepath.Join(p.dir, "redis.conf")
	text := p.conf.file(p.dir, p.port, p.adminPassword, p.certs)
	if err := os.WriteFile(confFile, []byte(text), 0o600); err != nil {
		return err
	}
	log, err := os.OpenFile(p.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close() // the child has its own descriptor
	from, err := log.Seek(0, 2)
	if err != nil {
		return err
	}

	cmd := exec.Command(p.binary, confFile)
	if p.conf.sentinel != "" {
		cmd.Args = append(cmd.Args, "--sentinel")
	}
	if p.conf.clock != 0 {
		if cmd.Env, err = clockEnv(p.dir, p.conf.clock); err != nil {
			return err
		}
	}
	cmd.Dir = p.dir
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = dieWithParent()
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", p.binary, err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = cmd.Wait() // a killed server is no error
	}()
	p.cmd, p.done = cmd, done

	if err := p.awaitReady(cmd.Process.Pid, done); err != nil {
		p.kill()
		tail := p.logTail(from)
		switch {
		case strings.Contains(tail, "Address already in use"):
			return errPortTaken
		case p.conf.tls && strings.Contains(tail, "Bad directive"):
			return errNoTLS
		}
		return fmt.Errorf("start %s: %w; the end of its log:\n%s", p.binary, err, tail)
	}
	return nil
}

// awaitReady polls until the server on the port is the process pid and has loaded its data.
// The process ID is compared because the server of another process may have taken the port.
func (p *process) awaitReady(pid int, done <-chan struct{}) error {
	opts := p.options()
	opts.DB = 0
	if p.conf.sentinel == "" { // a sentinel has no users of ours
		opts.Username, opts.Password = adminUser, p.adminPassword
	}
	opts.MaxRetries = -1
	client := redis.NewClient(opts)
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()

	want := strconv.Itoa(pid)
	for {
		// go-redis logs every failed dial and waits 100 ms after it.
		conn, err := net.DialTimeout("tcp", p.addr(), startTimeout)
		info := ""
		if err == nil {
			_ = conn.Close()
			info, err = client.Info(ctx, "server").Result()
		}
		if err == nil && infoField(info, "process_id") == want {
			return nil
		}
		if err == nil {
			err = errPortTaken
		}
		select {
		case <-done:
			return errors.New("it ended")
		case <-ctx.Done():
			return fmt.Errorf("it does not answer within %s: %w", startTimeout, err)
		case <-time.After(pollInterval):
		}
	}
}

// options are those of the default user.
func (p *process) options() *redis.Options {
	opts := &redis.Options{Addr: p.addr(), Password: p.conf.password, DB: database()}
	if p.certs != nil {
		opts.TLSConfig = p.certs.clientConfig()
	}
	return opts
}

// logTail returns the last lines that the server has logged after the offset from.
func (p *process) logTail(from int64) string {
	text, err := os.ReadFile(p.logFile())
	if err != nil || from > int64(len(text)) {
		return fmt.Sprintf("(no log: %v)", err)
	}
	lines := strings.Split(strings.TrimSpace(string(text[from:])), "\n")
	return strings.Join(lines[max(0, len(lines)-20):], "\n")
}

// stop asks the server to end and kills it when it does not. A stopped server stays stopped.
func (p *process) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return
	}
	_ = resume(p.cmd.Process) // a frozen process would not see the signal
	_ = terminate(p.cmd.Process)
	select {
	case <-p.done:
	case <-time.After(stopTimeout):
	}
	p.kill()
}

// crash ends the server without a warning.
func (p *process) crash() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.kill()
}

// kill ends the process and waits for it. p.mu is held.
func (p *process) kill() {
	if p.cmd == nil {
		return
	}
	_ = p.cmd.Process.Kill()
	<-p.done
	p.cmd = nil
}

// destroy kills the server and removes its directory.
func (p *process) destroy() {
	p.crash()
	_ = os.RemoveAll(p.dir)
}

// running returns the process of the operating system, nil while stopped.
func (p *process) running() *os.Process {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return nil
	}
	return p.cmd.Process
}

// database is the number in REDIS_DB, 0 without one.
func database() int {
	n, _ := strconv.Atoi(os.Getenv("REDIS_DB"))
	return n
}
