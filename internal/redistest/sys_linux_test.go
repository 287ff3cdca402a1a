package redistest

import (
	"fmt"
	"os"
	"strconv"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

var serverChild = ChildMain("server", func() {
	proc, err := launch(config{})
	if err != nil {
		panic(err)
	}
	fmt.Println("dir " + proc.dir)
	fmt.Println("pid " + strconv.Itoa(proc.running().Pid))
	select {}
})

func TestServerDiesWithItsTestProcess(t *testing.T) {
	t.Parallel()
	Start(t) // skips without a server
	child := StartChild(t, serverChild)
	dir := child.WaitLine("dir ", soon)
	t.Cleanup(func() { _ = os.RemoveAll(dir) }) // no process is left to do that
	pid, err := strconv.Atoi(child.WaitLine("pid ", soon))
	require.NoError(t, err)
	require.NoError(t, syscall.Kill(pid, 0))
	child.Kill()
	Eventually(t, soon, func() bool { return ended(pid) }, "the server %d ends", pid)
}

// ended reports whether a process has ended, or waits only until its exit code is
// read: in a container without an init process that never happens.
func ended(pid int) bool {
	if syscall.Kill(pid, 0) != nil {
		return true
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || len(stat) > 0 && containsAny(string(stat), []string{") Z ", ") X "})
}
