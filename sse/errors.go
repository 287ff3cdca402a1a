package sse

import (
	"errors"

	"github.com/flaminco/redischannels/internal/feed"
)

var (
	// ErrUnauthorized as the error of Options.Authorize answers 401 in place of 403.
	ErrUnauthorized = errors.New("unauthorized")

	// ErrSlowClient means that a client took nothing for WriteTimeout, or was further
	// behind than Buffer and BufferBytes. It resumes where it has come to.
	ErrSlowClient = feed.ErrSlow
)

// The errors of runs that a caller may branch on.
var (
	// ErrRunning means that a run of this ID has a writer.
	ErrRunning = errors.New("the run has a writer")
	// ErrNoRun means that there is no run of this ID, or not any more.
	ErrNoRun = errors.New("no such run")
	// ErrRunEnded means that the run has ended, by End.
	ErrRunEnded = errors.New("the run has ended")
	// ErrStopped means that the run was ended by Stop.
	ErrStopped = errors.New("the run was stopped")
	// ErrSuperseded means that a newer writer has restarted the run.
	ErrSuperseded = errors.New("the run has a newer writer")
	// ErrLost means that the run was ended as lost, because nothing was heard of its writer for
	// WriterLease, or that Redis no longer has all of it.
	ErrLost = errors.New("the run is lost")
)
