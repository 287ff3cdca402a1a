//go:build !unix

package redistest

import (
	"errors"
	"os"
)

var errNoSignals = errors.New("this operating system cannot freeze a process")

func pause(*os.Process) error       { return errNoSignals }
func resume(*os.Process) error      { return errNoSignals }
func terminate(p *os.Process) error { return p.Kill() }
