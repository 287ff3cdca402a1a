//go:build !linux

package local

import (
	"syscall"
	"time"
)

func dieWithParent() *syscall.SysProcAttr { return nil }

// CPUTime is not known here.
func CPUTime() time.Duration { return 0 }

// SystemCalls is not known here.
func SystemCalls() int64 { return 0 }

// RaiseFileLimit does nothing here.
func RaiseFileLimit() error { return nil }
