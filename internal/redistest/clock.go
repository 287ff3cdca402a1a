package redistest

import (
	_ "embed" // the library of ClockOffset
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

//go:embed testdata/clock.c
var clockSource string

var errNoClock = errors.New("the clock of a server can be changed on Linux with a C compiler only")

// ClockOffset makes the clock of the server differ from that of the machine, in whole seconds.
// It needs a C compiler, as the race detector does, and Linux; otherwise the test is skipped.
func ClockOffset(d time.Duration) Option {
	return func(c *config) { c.clock = d }
}

// clockEnv returns the environment that changes the clock of a server, of which a library in
// dir is a part.
func clockEnv(dir string, offset time.Duration) ([]string, error) {
	if runtime.GOOS != "linux" {
		return nil, errNoClock
	}
	library := filepath.Join(dir, "clock.so")
	if _, err := os.Stat(library); err != nil {
		cmd := exec.Command("cc", "-shared", "-fPIC", "-O1", "-o", library, "-x", "c", "-")
		cmd.Stdin = strings.NewReader(clockSource)
		if out, err := cmd.CombinedOutput(); errors.Is(err, exec.ErrNotFound) {
			return nil, errNoClock
		} else if err != nil {
			return nil, fmt.Errorf("compile clock.c: %w: %s", err, out)
		}
	}
	return append(os.Environ(),
		"LD_PRELOAD="+library,
		fmt.Sprintf("REDISTEST_CLOCK_OFFSET=%d", int64(offset.Seconds()))), nil
}
