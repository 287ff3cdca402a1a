package redistest

import (
	"crypto/tls"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// Server is a redis-server that a test talks to: a process of its own ([Start]) or the
// server that all tests of a process share ([Shared]).
type Server struct {
	tb     testing.TB
	opts   redis.Options // of the default user
	proc   *process      // nil for a server that the kit does not run (REDIS_ADDR)
	shared bool
}

// Start runs a private redis-server on a free port of the loopback interface, in a directory
// of its own, without persistence unless [AOF] asks for it. It returns when the server
// answers. The server is killed and its directory removed at the end of the test, and on
// Linux also when the test process dies.
//
// Without a redis-server the test is skipped, or fails with REQUIRE_REDIS=1.
func Start(tb testing.TB, opts ...Option) *Server {
	tb.Helper()
	var conf config
	for _, opt := range opts {
		opt(&conf)
	}
	proc, err := launch(conf)
	if err != nil {
		unavailable(tb, err)
	}
	tb.Cleanup(proc.destroy)
	return &Server{tb: tb, opts: *proc.options(), proc: proc}
}

// unavailable ends the test: skipped where only the software is missing, failed otherwise.
func unavailable(tb testing.TB, err error) {
	tb.Helper()
	if errors.Is(err, errNoClock) {
		tb.Skipf("redistest: %v", err)
	}
	if !errors.Is(err, errNoServer) && !errors.Is(err, errNoTLS) {
		tb.Fatalf("redistest: %v", err)
	}
	const how = "apt-get install redis-server (Debian, Ubuntu), dnf install redis (Fedora) or " +
		"brew install redis (macOS), or set REDIS_SERVER to the path of a redis-server; " +
		"tests that stop no server also run against the one that REDIS_ADDR names"
	// Who names a server has chosen to do without the tests that need one of their own.
	if os.Getenv("REQUIRE_REDIS") == "1" && os.Getenv("REDIS_ADDR") == "" {
		tb.Fatalf("redistest: %v, and REQUIRE_REDIS=1 demands one: %s", err, how)
	}
	tb.Skipf("redistest: %v: %s", err, how)
}

// Addr is the server's "host:port".
func (s *Server) Addr() string { return s.opts.Addr }

// Options are the options of a client of the default user: address, password, TLS and database.
// The caller may change them, they are a copy.
func (s *Server) Options() *redis.Options {
	opts := s.opts
	if opts.TLSConfig != nil {
		opts.TLSConfig = opts.TLSConfig.Clone()
	}
	return &opts
}

// TLSConfig is a client's configuration with the server's authority and a client certificate;
// nil for a server without [TLS].
func (s *Server) TLSConfig() *tls.Config { return s.Options().TLSConfig }

// Client returns a new client of the default user, which is closed at the end of the test. tb
// may be a sub-test. Each mutate changes the options before the client is made, see also
// [As], [Via] and [DB].
func (s *Server) Client(tb testing.TB, mutate ...func(*redis.Options)) *redis.Client {
	tb.Helper()
	opts := s.Options()
	for _, m := range mutate {
		m(opts)
	}
	client := redis.NewClient(opts)
	tb.Cleanup(func() { _ = client.Close() })
	return client
}

// Admin returns a client that may do everything, whatever the test did to the default user.
// It is closed at the end of the test.
func (s *Server) Admin(tb testing.TB) *redis.Client {
	tb.Helper()
	if s.proc == nil { // not a server of the kit: only the default user is known
		return s.Client(tb)
	}
	return s.Client(tb, As(adminUser, s.proc.adminPassword))
}

// As makes a client of [Server.Client] log in as a user.
func As(user, password string) func(*redis.Options) {
	return func(o *redis.Options) { o.Username, o.Password = user, password }
}

// Via makes a client of [Server.Client] go through a proxy.
func Via(p *Proxy) func(*redis.Options) {
	return func(o *redis.Options) { o.Addr = p.Addr() }
}

// DB makes a client of [Server.Client] select a database.
func DB(n int) func(*redis.Options) {
	return func(o *redis.Options) { o.DB = n }
}

// PID is the process ID of the server; 0 while it is stopped.
func (s *Server) PID() int {
	s.tb.Helper()
	if p := s.owned().running(); p != nil {
		return p.Pid
	}
	return 0
}

// Stop ends the server as a clean shutdown does and returns when it has ended. The address
// refuses connections until [Server.Restart]. A stopped server is left alone.
func (s *Server) Stop() {
	s.tb.Helper()
	s.owned().stop()
}

// Kill ends the server with SIGKILL and returns when it has ended.
func (s *Server) Kill() {
	s.tb.Helper()
	s.owned().crash()
}

// Restart runs the server again on the same port, in the same directory and with the same
// configuration; a server that still runs is killed before. It returns when the server replies.
// The data is that of persistence ([AOF]), otherwise none.
func (s *Server) Restart() {
	s.tb.Helper()
	p := s.owned()
	p.crash()
	deadline := time.Now().Add(startTimeout)
	for {
		err := p.start()
		if err == nil {
			return
		}
		if !errors.Is(err, errPortTaken) || time.Now().After(deadline) {
			s.tb.Fatalf("redistest: restart: %v", err)
		}
		<-time.After(pollInterval)
	}
}

// Pause freezes the server (SIGSTOP): connections stay open and the kernel accepts new ones,
// but nothing answers until [Server.Resume].
func (s *Server) Pause() {
	s.tb.Helper()
	s.signal("pause", pause)
}

// Resume wakes a frozen server up (SIGCONT).
func (s *Server) Resume() {
	s.tb.Helper()
	s.signal("resume", resume)
}

func (s *Server) signal(what string, send func(*os.Process) error) {
	s.tb.Helper()
	p := s.owned().running()
	if p == nil {
		s.tb.Fatalf("redistest: %s: the server is stopped", what)
	}
	if err := send(p); err != nil {
		s.tb.Fatalf("redistest: %s: %v", what, err)
	}
}

// Log returns the last lines of the server's log.
func (s *Server) Log() string {
	s.tb.Helper()
	return s.owned().logTail(0)
}

// owned returns the process if it belongs to this test alone.
func (s *Server) owned() *process {
	s.tb.Helper()
	if s.shared {
		s.tb.Fatal("redistest: this server is shared by all tests of the process; use Start for one that can be stopped")
	}
	return s.proc
}
