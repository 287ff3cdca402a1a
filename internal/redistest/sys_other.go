//go:build !linux

package redistest

import "syscall"

// dieWithParent is possible on Linux only. Elsewhere a test process that dies without its
// clean-up leaves its children behind.
func dieWithParent() *syscall.SysProcAttr { return nil }

// awaitStopped is possible on Linux only.
func awaitStopped(int) error { return nil }
