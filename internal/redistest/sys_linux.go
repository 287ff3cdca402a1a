package redistest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// stopLimit bounds the wait for a process to stop.
const stopLimit = 5 * time.Second

// awaitStopped waits until every thread of a process has stopped. SIGSTOP is not
// immediate: a thread that runs on another processor runs for a while, long enough to
// handle a message that is sent to it right after.
func awaitStopped(pid int) error {
	for deadline := time.Now().Add(stopLimit); ; <-time.After(time.Millisecond) {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		if err != nil {
			return err
		}
		running := 0
		for _, path := range threads {
			stat, err := os.ReadFile(path)
			if err != nil {
				continue // the thread has ended
			}
			// The state follows the name, which is in parentheses and may hold any.
			_, state, _ := strings.Cut(string(stat[strings.LastIndexByte(string(stat), ')'):]), " ")
			if !strings.HasPrefix(state, "T") {
				running++
			}
		}
		switch {
		case running == 0:
			return nil
		case time.Now().After(deadline):
			return fmt.Errorf("%d of %d threads have not stopped", running, len(threads))
		}
	}
}

// dieWithParent makes the kernel kill a child when the test process dies without its
// clean-up, for example at the timeout of "go test".
//
// The kernel watches the thread that forked, not the process. The runtime ends a thread only
// when a goroutine that is locked to it returns, so this holds as long as no caller uses the
// kit from a goroutine with runtime.LockOSThread.
func dieWithParent() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
