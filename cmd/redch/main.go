// Command redch shows and repairs the topics and consumer groups of package redischannels. docs/operations.md
// explains it.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"os/user"
	"strings"
	"syscall"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/alecthomas/kong"
	"github.com/redis/go-redis/v9"
	"github.com/willabides/kongplete"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/inspect"
)

// The exit codes.
const (
	exitOK    = 0
	exitError = 1
	exitUsage = 2
	exitCheck = 3
)

// errCheck ends redch with exitCheck.
var errCheck = errors.New("the check has failed")

// cli are the flags and commands.
type cli struct {
	URL     string        `help:"Redis server, as a URL of redischannels.NewRedisClient." env:"REDCH_URL" default:"redis://localhost:6379" placeholder:"URL"`
	Output  string        `short:"o" help:"table or json." enum:"table,json" default:"table"`
	Width   int           `help:"Columns of a table." env:"COLUMNS" default:"80"`
	Watch   time.Duration `help:"Repeat a read, such as --watch 2s." placeholder:"TIME"`
	Timeout time.Duration `help:"How long a read may take." default:"30s"`
	Actor   string        `help:"Who acts, for the audit stream. Defaults to the user and host." env:"REDCH_ACTOR"`

	Topics      topicsCmd      `cmd:"" help:"List topics."`
	Groups      groupsCmd      `cmd:"" help:"List the groups of a topic: lag, pending entries, consumers."`
	Consumers   consumersCmd   `cmd:"" help:"List the consumers of a group."`
	Pending     pendingCmd     `cmd:"" help:"List the pending entries of a group."`
	Show        showCmd        `cmd:"" help:"Show an entry with its message."`
	Tail        tailCmd        `cmd:"" help:"Show the newest messages, and continue with new ones."`
	Produce     produceCmd     `cmd:"" help:"Publish a message."`
	Dead        deadCmd        `cmd:"" help:"Dead letters: list, show, requeue, purge."`
	Pause       pauseCmd       `cmd:"" help:"Pause a group."`
	Resume      resumeCmd      `cmd:"" help:"Resume a group."`
	Seek        seekCmd        `cmd:"" help:"Move a paused group to another position."`
	Skip        skipCmd        `cmd:"" help:"End one pending entry without handling it."`
	Delayed     delayedCmd     `cmd:"" help:"List messages that wait to be appended, or to return to a group."`
	Schedules   schedulesCmd   `cmd:"" help:"List the schedules of a topic."`
	Remove      removeCmd      `cmd:"" help:"Remove a consumer, and lose nothing."`
	RemoveGroup removeGroupCmd `cmd:"" help:"Remove a group with everything that waits for it alone."`
	Audit       auditCmd       `cmd:"" help:"List what operators have done."`
	Trim        trimCmd        `cmd:"" help:"Remove the entries that no group needs."`
	Doctor      doctorCmd      `cmd:"" help:"Find causes of lost and late messages, in servers and topics."`
	ACL         aclCmd         `cmd:"" help:"Print the permissions of a role, and exit with 3 if one is missing."`
	Check       checkCmd       `cmd:"" help:"Exit with 3 if a group is beyond limits, for monitoring."`

	Completion kongplete.InstallCompletions `cmd:"" help:"Print what installs completion in a shell."`
}

// app is what commands work with.
type app struct {
	*cli
	context.Context
	client    redis.UniversalClient
	inspector *inspect.Inspector
	in        io.Reader
	out       io.Writer
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run runs a command and returns the exit code.
func run(ctx context.Context, args []string, in io.Reader, out, problems io.Writer) (code int) {
	var flags cli
	exited := false
	parser, err := kong.New(&flags, kong.Name("redch"), kong.Description("Topics and consumer groups of redischannels in Redis.\n\n"+
		"Exit codes: 0 done, 1 error, 2 wrong usage, 3 a check has failed."),
		kong.Writers(out, problems), kong.Exit(func(status int) { code, exited = status, true }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 80}))
	if err != nil {
		fmt.Fprintln(problems, "redch:", err)
		return exitError
	}
	kongplete.Complete(parser)
	parsed, err := parser.Parse(args)
	if exited { // by --help
		return code
	}
	if err != nil {
		fmt.Fprintf(problems, "redch: %v\nredch --help lists the commands.\n", err)
		return exitUsage
	}
	err = execute(ctx, parsed, &flags, in, out)
	switch {
	case err == nil, ctx.Err() != nil: // it was interrupted
		return exitOK
	case errors.Is(err, errCheck):
		return exitCheck
	case errors.Is(err, redischannels.ErrInvalidArgument), errors.Is(err, redischannels.ErrInvalidConfig):
		code = exitUsage
	default:
		code = exitError
	}
	fmt.Fprintln(problems, "redch:", strings.TrimPrefix(err.Error(), "redischannels/inspect: "))
	return code
}

func execute(ctx context.Context, parsed *kong.Context, flags *cli, in io.Reader, out io.Writer) error {
	if parsed.Command() == "completion" {
		return parsed.Run()
	}
	client, err := redischannels.NewRedisClient(flags.URL)
	if err != nil {
		return err
	}
	defer client.Close()
	a := &app{cli: flags, Context: ctx, client: client, in: in, out: out}
	if a.inspector, err = inspect.New(inspect.Config{Client: client, Actor: actor(flags.Actor)}, watermill.NopLogger{}); err != nil {
		return err
	}
	for {
		if err := parsed.Run(a); err != nil || flags.Watch <= 0 {
			return err
		}
		if !wait(ctx, flags.Watch) {
			return nil
		}
		fmt.Fprintf(out, "\n%s\n", time.Now().Format(time.DateTime))
	}
}

// wait waits for d, and reports false if ctx has ended before.
func wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// read returns a context for a read.
func (a *app) read() (context.Context, context.CancelFunc) {
	return context.WithTimeout(a.Context, a.Timeout)
}

func actor(name string) string {
	if name != "" {
		return name
	}
	host, _ := os.Hostname()
	if who, err := user.Current(); err == nil {
		return who.Username + "@" + host
	}
	return host
}
