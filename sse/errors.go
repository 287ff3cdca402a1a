package sse

import (
	"errors"

	"github.com/flaminco/redischannels/internal/feed"
)

var (
	// ErrUnauthorized as the error of Options.Authorize results in status 401 instead of 403.
	ErrUnauthorized = errors.New("unauthorized")

	// ErrSlowClient means that a client read nothing for WriteTimeout, or was further behind than
	// Buffer and BufferBytes. It can reconnect and resume at its position.
	ErrSlowClient = feed.ErrSlow
)

// Errors of runs that a caller may test with [errors.Is].
var (
	// ErrRunning means that a run of this ID has a writer.
	ErrRunning = errors.New("the run has a writer")
	// ErrNoRun means that there is no run of this ID, or no longer.
	ErrNoRun = errors.New("no such run")
	// ErrRunEnded means that the run has ended, by End.
	ErrRunEnded = errors.New("the run has ended")
	// ErrStopped means that the run was ended by Stop.
	ErrStopped = errors.New("the run was stopped")
	// ErrSuperseded means that a newer writer has restarted the run.
	ErrSuperseded = errors.New("the run has a newer writer")
	// ErrLost means that the run was ended as lost, because its writer did not renew its lease
	// for WriterLease, or that Redis no longer has the complete run.
	ErrLost = errors.New("the run is lost")
)
