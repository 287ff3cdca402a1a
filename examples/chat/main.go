// Command chat is a chat with rooms, in the browser. Each room is a Redis stream, which the page
// follows by Server-Sent Events: it shows the history on entry, and after any interruption it
// continues behind the last message that it has. Who is there and who is typing goes over Redis
// Pub/Sub, since that matters only now.
//
//	go run ./examples/chat          # then open http://localhost:8080
//	go run ./examples/chat -open    # opens it for you
//
// It needs no Redis: an embedded server lives as long as the program. With REDIS_URL, such as
// redis://localhost:6379/0, it uses a real one, and then any number of instances serve the same
// rooms, each at its own -addr. They, and Redis, may be killed and restarted at any moment.
//
// The footer of the page names the instance that serves it, the stream of the room and the process to
// kill. While Redis is down the page is not "Live", and it keeps what is written until Redis is back.
//
// A user that signs in with the admin key, which is printed at the start, is an admin: admins have a
// badge and can make announcements. All others are customers.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/time/rate"

	"github.com/flaminco/redischannels/examples/internal/redisserver"
)

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

// shutdownTimeout bounds the end of the program after Ctrl-C.
const shutdownTimeout = 10 * time.Second

// command is the program with all that it takes from its surroundings.
type command struct {
	args           []string // without the program's name
	stdout, stderr io.Writer
	redisURL       string
	adminKey       string
}

func main() {
	redis.SetLogger(quiet{}) // of its pool; what matters comes as errors
	os.Exit(command{os.Args[1:], os.Stdout, os.Stderr, os.Getenv("REDIS_URL"), os.Getenv("CHAT_ADMIN_KEY")}.run())
}

type quiet struct{}

func (quiet) Printf(context.Context, string, ...any) {}

// run serves until a signal and returns the exit code.
func (c command) run() int {
	flags := flag.NewFlagSet("chat", flag.ContinueOnError)
	flags.SetOutput(c.stderr)
	flags.Usage = func() {
		fmt.Fprint(c.stderr, "Usage: chat [flags]\n\n"+
			"A chat with rooms over Redis Streams and Pub/Sub. REDIS_URL names a real server,\n"+
			"CHAT_ADMIN_KEY the key of admins; without it a random one is kept in Redis.\n\n")
		flags.PrintDefaults()
	}
	addr := flags.String("addr", "localhost:8080", "`host:port` to listen on; :8080 is reachable from other machines")
	open := flags.Bool("open", false, "open the browser")
	hosts := flags.String("host", "", "`names`, with commas between them, at which it is reached besides localhost and IP addresses")
	perSecond := flags.Float64("rate", 2, "`messages` per second that a user may send in the long run")
	switch err := flags.Parse(c.args); {
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err != nil:
		return exitUsage
	case flags.NArg() > 0:
		fmt.Fprintf(c.stderr, "chat: takes no arguments, got %q\n", flags.Arg(0))
		return exitUsage
	case !(*perSecond > 0):
		fmt.Fprintln(c.stderr, "chat: -rate must be above 0")
		return exitUsage
	}

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second Ctrl-C kills

	if err := c.serve(ctx, *addr, *open, strings.Split(*hosts, ","), rate.Limit(*perSecond)); err != nil {
		fmt.Fprintf(c.stderr, "chat: %v\n", err)
		return exitFailed
	}
	return exitOK
}

// serve runs the chat until ctx ends.
func (c command) serve(ctx context.Context, addr string, open bool, hosts []string, perSecond rate.Limit) (err error) {
	// The address comes first: whether it is free is known at once.
	listener, err := listen(ctx, addr)
	if err != nil {
		return err
	}
	defer listener.Close()
	client, redisServer, closeRedis, err := redisserver.Open(ctx, c.redisURL)
	if err != nil {
		return err
	}
	defer closeRedis()
	config := defaultConfig()
	config.adminKey, config.hosts, config.rate = c.adminKey, hosts, perSecond
	config.embedded = c.redisURL == ""
	config.log = log.New(c.stderr, "", log.Ltime)
	chat, err := newServer(ctx, client, config)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, chat.close()) }()

	page := "http://" + visibleAddr(listener.Addr())
	fmt.Fprintf(c.stdout, "Redis: %s\n", redisServer)
	fmt.Fprintf(c.stdout, "Admin key: %s (for those who sign in as an admin)\n", chat.sessions.adminKey)
	fmt.Fprintf(c.stdout, "Chat: %s (Ctrl-C ends it)\n", page)

	var helpers sync.WaitGroup
	defer helpers.Wait()
	opening, cancelOpening := context.WithCancel(ctx)
	defer cancelOpening()
	if open {
		helpers.Go(func() {
			if err := openBrowser(opening, page); err != nil && opening.Err() == nil {
				fmt.Fprintf(c.stderr, "chat: no browser opens (%v); please open %s yourself\n", err, page)
			}
		})
	}

	server := &http.Server{
		Handler:  chat.handler(),
		ErrorLog: config.log,
		// No ReadTimeout and no WriteTimeout, which would end event streams: each handler of
		// a request that has an end sets its own.
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
	}
	served := make(chan error, 1)
	helpers.Go(func() { served <- server.Serve(listener) })
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	fmt.Fprintln(c.stdout, "Ending.")
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	chat.endStreams() // Shutdown waits for the requests under way, and these have no end
	if err := server.Shutdown(ending); err != nil {
		return errors.Join(err, server.Close())
	}
	return nil
}

// listen opens the address and explains the error that a second instance meets.
func listen(ctx context.Context, addr string) (net.Listener, error) {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("address %s is taken; choose another one, such as -addr localhost:8081", addr)
	}
	if err != nil {
		return nil, fmt.Errorf("-addr must look like localhost:8080: %w", err)
	}
	return listener, nil
}

// visibleAddr is the address as it is typed into a browser on this machine.
func visibleAddr(addr net.Addr) string {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok {
		return addr.String()
	}
	host := tcp.IP.String()
	if tcp.IP.IsUnspecified() || tcp.IP.IsLoopback() {
		host = "localhost"
	}
	return net.JoinHostPort(host, fmt.Sprint(tcp.Port))
}

// openBrowser asks the system to open the page. Where that runs the browser itself, it lasts as
// long as the browser does, or ctx.
func openBrowser(ctx context.Context, page string) error {
	switch runtime.GOOS {
	case "darwin":
		return exec.CommandContext(ctx, "open", page).Run()
	case "windows":
		return exec.CommandContext(ctx, "rundll32", "url.dll,FileProtocolHandler", page).Run()
	default:
		return exec.CommandContext(ctx, "xdg-open", page).Run()
	}
}
