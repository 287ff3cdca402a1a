package redistest

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"
)

// childEnv names the function that a child process runs.
const childEnv = "REDISTEST_CHILD"

// childMains are the functions of child processes by name. They are registered before TestMain
// and only read after.
var childMains = make(map[string]func())

// ChildMain registers what a child process of this name runs, and returns the name. It is
// called before [Main], which in the child runs the function in place of the tests and exits
// when it returns:
//
//	var consumerChild = redistest.ChildMain("consumer", func() { ... })
//
// The function learns from its environment what to do and answers on its standard output.
func ChildMain(name string, fn func()) string {
	if _, ok := childMains[name]; ok {
		panic("redistest: two children are named " + name)
	}
	childMains[name] = fn
	return name
}

// runChild runs the child's function and exits, if this process is a child.
func runChild() {
	name := os.Getenv(childEnv)
	if name == "" {
		return
	}
	fn, ok := childMains[name]
	if !ok {
		panic("redistest: no child is named " + name)
	}
	fn()
	os.Exit(0)
}

// Child is a process that runs a function of the test binary.
type Child struct {
	tb    testing.TB
	cmd   *exec.Cmd
	stdin io.WriteCloser
	lines chan string

	quit     chan struct{} // closed by Kill: lines beyond the buffer are dropped
	done     chan struct{} // closed when the process has ended and its output is read
	exitErr  error         // of the process, set before done is closed
	quitOnce sync.Once
}

// childLines is how many unread lines are kept before a child's next line blocks it.
const childLines = 1 << 16

// StartChild runs the function that [ChildMain] registered under name in a new process of this
// test binary, with further "NAME=value" of the environment. The child is killed at the end of
// the test, and on Linux also when the test process dies. The test logs its standard error.
func StartChild(tb testing.TB, name string, env ...string) *Child {
	tb.Helper()
	if _, ok := childMains[name]; !ok {
		tb.Fatalf("redistest: no child is named %s", name)
	}
	self, err := os.Executable()
	if err != nil {
		tb.Fatalf("redistest: %v", err)
	}
	cmd := exec.Command(self, "-test.run=^$")
	cmd.Env = append(append(os.Environ(), env...), childEnv+"="+name)
	cmd.SysProcAttr = dieWithParent()
	c := &Child{
		tb: tb, cmd: cmd, lines: make(chan string, childLines),
		quit: make(chan struct{}), done: make(chan struct{}),
	}
	if c.stdin, err = cmd.StdinPipe(); err != nil {
		tb.Fatalf("redistest: %v", err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		tb.Fatalf("redistest: %v", err)
	}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		tb.Fatalf("redistest: %v", err)
	}
	if err := cmd.Start(); err != nil {
		tb.Fatalf("redistest: start child %s: %v", name, err)
	}
	var output sync.WaitGroup
	output.Go(func() {
		defer close(c.lines)
		eachLine(stdout, func(line string) {
			select {
			case c.lines <- line:
				return
			default: // full: wait for the reader, which may have ended
			}
			select {
			case c.lines <- line:
			case <-c.quit:
			}
		})
	})
	output.Go(func() {
		eachLine(stderr, func(line string) { tb.Logf("child %s: %s", name, line) })
	})
	go func() {
		defer close(c.done)
		output.Wait() // Wait closes the pipes, so all is read before
		c.exitErr = cmd.Wait()
	}()
	tb.Cleanup(c.Kill)
	return c
}

// ChildCommand returns the words of a command that runs the function that [ChildMain]
// registered under name, with further "NAME=value" of the environment: for code that takes a
// command, not a process. It needs the program env.
func ChildCommand(tb testing.TB, name string, env ...string) []string {
	tb.Helper()
	if _, ok := childMains[name]; !ok {
		tb.Fatalf("redistest: no child is named %s", name)
	}
	self, err := os.Executable()
	if err != nil {
		tb.Fatalf("redistest: %v", err)
	}
	words := append([]string{"env", childEnv + "=" + name}, env...)
	return append(words, self, "-test.run=^$")
}

// eachLine calls fn for each line until the end of r. A line may be of any length.
func eachLine(r io.Reader, fn func(string)) {
	in := bufio.NewReader(r)
	for {
		line, err := in.ReadString('\n')
		if line != "" {
			fn(strings.TrimRight(line, "\r\n"))
		}
		if err != nil {
			return
		}
	}
}

// Pid is the process ID.
func (c *Child) Pid() int { return c.cmd.Process.Pid }

// Lines is the child's standard output, line by line; it is closed when the child has ended.
func (c *Child) Lines() <-chan string { return c.lines }

// WaitLine reads [Child.Lines] up to the first line with this prefix and returns the rest of
// that line. It fails the test when the line does not come in time.
func (c *Child) WaitLine(prefix string, timeout time.Duration) string {
	c.tb.Helper()
	deadline := time.NewTimer(timeout)
	defer deadline.Stop()
	for {
		select {
		case line, ok := <-c.lines:
			if !ok {
				c.tb.Fatalf("redistest: the child ended without a line %q", prefix)
			}
			if rest, found := strings.CutPrefix(line, prefix); found {
				return rest
			}
		case <-deadline.C:
			c.tb.Fatalf("redistest: no line %q of the child within %s", prefix, timeout)
		}
	}
}

// Stdin is the child's standard input, for example to ask it to continue. It is not closed
// while the child runs, so a child that reads it to its end waits for its own end.
func (c *Child) Stdin() io.Writer { return c.stdin }

// Done is closed when the child has ended.
func (c *Child) Done() <-chan struct{} { return c.done }

// Kill ends the child with SIGKILL and returns when it has ended. A child that has ended is
// left alone.
func (c *Child) Kill() {
	c.quitOnce.Do(func() { close(c.quit) })
	_ = c.cmd.Process.Kill()
	<-c.done
}

// Terminate asks the child to end (SIGTERM); it does not wait.
func (c *Child) Terminate() {
	c.tb.Helper()
	c.signal("terminate", terminate)
}

// Pause freezes the child (SIGSTOP) until [Child.Resume].
func (c *Child) Pause() {
	c.tb.Helper()
	c.signal("pause", pause)
}

// Resume wakes a frozen child up (SIGCONT).
func (c *Child) Resume() {
	c.tb.Helper()
	c.signal("resume", resume)
}

func (c *Child) signal(what string, send func(*os.Process) error) {
	c.tb.Helper()
	if err := send(c.cmd.Process); err != nil {
		c.tb.Fatalf("redistest: %s child: %v", what, err)
	}
}

// Wait returns when the child has ended, with its exit error (nil for the exit code 0), and
// fails the test after timeout.
func (c *Child) Wait(timeout time.Duration) error {
	c.tb.Helper()
	select {
	case <-c.done:
	case <-time.After(timeout):
		c.tb.Fatalf("redistest: the child still runs after %s", timeout)
	}
	return c.exitErr
}
