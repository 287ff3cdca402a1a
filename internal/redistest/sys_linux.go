package redistest

import "syscall"

// dieWithParent makes the kernel kill a child when the test process dies without its
// clean-up, for example at the timeout of "go test".
//
// The kernel watches the thread that forked, not the process. The runtime ends a thread only
// when a goroutine that is locked to it returns, so this holds as long as nobody calls the
// kit from a goroutine with runtime.LockOSThread.
func dieWithParent() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
