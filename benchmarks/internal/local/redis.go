// Package local provides what measurements need of this machine: a redis-server of their own and
// the time of its processors.
package local

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	startTimeout = 20 * time.Second
	stopTimeout  = 3 * time.Second
	pollInterval = 5 * time.Millisecond
)

// ErrNoServer is the error where there is no server to start.
var ErrNoServer = errors.New("no redis-server: install Redis >= 6.2 or Valkey >= 7.2, " +
	"or set REDIS_SERVER to the path of its binary")

// Redis is a redis-server process that no other caller gets: no persistence, one port on
// loopback, a directory that goes with it.
type Redis struct {
	Addr    string
	Version string
	Client  *redis.Client // for preparing and checking, never for what is measured
	dir     string
	cmd     *exec.Cmd
	ended   chan struct{}
}

// StartRedis starts a server and waits until it replies.
func StartRedis(ctx context.Context) (*Redis, error) {
	binary, err := serverBinary()
	if err != nil {
		return nil, err
	}
	// A port that is free now can be taken a moment later; the server ends then.
	for attempt := 0; ; attempt++ {
		s, err := launch(ctx, binary)
		if err == nil || attempt == 5 || ctx.Err() != nil {
			return s, err
		}
	}
}

// serverBinary finds the server as the tests of the library do.
func serverBinary() (string, error) {
	if name := os.Getenv("REDIS_SERVER"); name != "" {
		path, err := exec.LookPath(name)
		if err != nil {
			return "", fmt.Errorf("REDIS_SERVER: %w", err)
		}
		return path, nil
	}
	for _, name := range []string{"redis-server", "valkey-server"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", ErrNoServer
}

func launch(ctx context.Context, binary string) (_ *Redis, err error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "redischannels-bench-")
	if err != nil {
		return nil, err
	}
	s := &Redis{Addr: net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), dir: dir, ended: make(chan struct{})}
	log, err := os.Create(filepath.Join(dir, "server.log"))
	if err != nil {
		_ = os.RemoveAll(dir)
		return nil, err
	}
	defer log.Close() // the process has its own descriptor
	s.cmd = exec.Command(binary, "--bind", "127.0.0.1", "--port", strconv.Itoa(port),
		"--dir", dir, "--save", "", "--appendonly", "no")
	s.cmd.Stdout, s.cmd.Stderr = log, log
	s.cmd.SysProcAttr = dieWithParent()
	if err := s.cmd.Start(); err != nil {
		_ = os.RemoveAll(dir)
		return nil, fmt.Errorf("start %s: %w", binary, err)
	}
	go func() {
		_ = s.cmd.Wait()
		close(s.ended)
	}()
	if err := s.await(ctx); err != nil {
		text, _ := os.ReadFile(log.Name())
		s.Stop()
		return nil, fmt.Errorf("start %s: %w; its log:\n%s", binary, err, text)
	}
	return s, nil
}

// freePort returns a port below those from which systems serve outgoing connections.
func freePort() (int, error) {
	var err error
	for range 100 {
		port := 12000 + rand.IntN(20000)
		var l net.Listener
		if l, err = net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port))); err == nil {
			return port, l.Close()
		}
	}
	return 0, fmt.Errorf("no free port: %w", err)
}

// await waits until the process of cmd, and not another one on its port, answers.
func (s *Redis) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		// go-redis would log every failed dial.
		conn, err := net.Dial("tcp", s.Addr)
		if err == nil {
			_ = conn.Close()
			break
		}
		select {
		case <-s.ended:
			return errors.New("it ended")
		case <-ctx.Done():
			return fmt.Errorf("it does not answer: %w", err)
		case <-time.After(pollInterval):
		}
	}
	s.Client = redis.NewClient(&redis.Options{Addr: s.Addr})
	info, err := s.Info(ctx, "server")
	if err != nil {
		return err
	}
	if info["process_id"] != strconv.Itoa(s.cmd.Process.Pid) {
		return errors.New("another server has its port")
	}
	s.Version = info["redis_version"]
	return nil
}

// Info returns one section of INFO.
func (s *Redis) Info(ctx context.Context, section string) (map[string]string, error) {
	text, err := s.Client.Info(ctx, section).Result()
	if err != nil {
		return nil, err
	}
	fields := make(map[string]string)
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			fields[name] = value
		}
	}
	return fields, nil
}

// Commands returns how many commands the server has executed, those of scripts included.
func (s *Redis) Commands(ctx context.Context) (int64, error) {
	info, err := s.Info(ctx, "stats")
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(info["total_commands_processed"], 10, 64)
}

// Reads returns how often the server has read from a connection: once per command, where none are
// sent together. Those of scripts do not count.
func (s *Redis) Reads(ctx context.Context) (int64, error) {
	info, err := s.Info(ctx, "stats")
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(info["total_reads_processed"], 10, 64)
}

// CommandStats returns how often the server has executed each command, by its name in lower
// case.
func (s *Redis) CommandStats(ctx context.Context) (map[string]int64, error) {
	info, err := s.Info(ctx, "commandstats")
	if err != nil {
		return nil, err
	}
	stats := make(map[string]int64, len(info))
	for name, text := range info {
		calls, _, _ := strings.Cut(strings.TrimPrefix(text, "calls="), ",")
		n, err := strconv.ParseInt(calls, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("commandstats: %q: %w", text, err)
		}
		stats[strings.TrimPrefix(name, "cmdstat_")] = n
	}
	return stats, nil
}

// Stop ends the server and removes its directory.
func (s *Redis) Stop() {
	if s.Client != nil {
		_ = s.Client.Close()
	}
	_ = s.cmd.Process.Signal(os.Interrupt)
	select {
	case <-s.ended:
	case <-time.After(stopTimeout):
		_ = s.cmd.Process.Kill()
		<-s.ended
	}
	_ = os.RemoveAll(s.dir)
}
