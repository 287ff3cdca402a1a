package sse

import (
	"errors"
	"fmt"
	"time"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/stream"
)

// Defaults of [RunsConfig].
const (
	DefaultRunsName       = "runs"
	DefaultRunTTL         = time.Hour
	DefaultWriterLease    = 10 * time.Second
	DefaultRunCoalesce    = 20 * time.Millisecond
	DefaultRunBuckets     = 32
	DefaultRunBufferBytes = 1 << 20
)

// NoCoalesce as RunsConfig.Coalesce sends every write at once.
const NoCoalesce time.Duration = -1

// RunsConfig configures [NewRuns]. The zero value is valid. All processes that write or serve the
// same runs need the same Name, Codec and Buckets.
type RunsConfig struct {
	// Name is the first part of the names of all keys, which are {NAME:BUCKET}:run:ID and so on.
	// It must not contain braces. Defaults to DefaultRunsName.
	Name string

	// Codec encodes pieces as payloads. Defaults to redischannels.JSON.
	Codec redischannels.Codec

	// TTL is how long a run is kept after its last write, at least WriterLease. If it is too low,
	// viewers that reconnect no longer find the run; too high costs memory in Redis. Defaults to
	// DefaultRunTTL. (PEXPIRE)
	TTL time.Duration

	// WriterLease is the time after which the run of a silent writer ends as lost, at least 100
	// ms. Writers renew it every third of it and at least every second, even while they have
	// nothing to write. Too low ends runs because of a pause of the process or the network; too
	// high lets viewers wait for a crashed writer. Defaults to DefaultWriterLease.
	WriterLease time.Duration

	// Coalesce is how long a piece waits for others, so that they are sent together, at least 1 ms.
	// Defaults to DefaultRunCoalesce; NoCoalesce turns it off.
	Coalesce time.Duration

	// BufferBytes is the maximum size of the buffer of a writer in bytes, at least 65. Each piece
	// takes the size of its payload and 64 bytes, until Redis has it. Write waits until all its
	// values fit, and returns ErrTooLarge if they never can. Too low makes writers wait for Redis;
	// too high costs memory during outages. Defaults to DefaultRunBufferBytes.
	BufferBytes int

	// Buckets is the number of hash slots of a Redis Cluster over which runs are distributed, 1
	// to 1,024. A process uses at most one connection per bucket for reading, as long as no more
	// than 256 runs of the bucket have viewers there. Too low puts much load on one master; too
	// high costs connections. After a change earlier runs are not found. Defaults to
	// DefaultRunBuckets.
	Buckets int

	// OnError receives errors that are not returned to a caller: outages while a writer has
	// pieces to write. A panic in it is recovered and logged by the package log. Defaults to
	// none.
	OnError func(error)
}

// Validate reports every problem of the configuration in one joined error. Each names its
// field and wraps [redischannels.ErrInvalidConfig].
func (c RunsConfig) Validate() error {
	c = c.withDefaults()
	var errs []error
	check := func(ok bool, field, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf("redischannels/sse: RunsConfig.%s: %w: %s", field, redischannels.ErrInvalidConfig, fmt.Sprintf(format, args...)))
		}
	}
	check(validName(c.Name), "Name", "must have no braces and no control characters, got %q", c.Name)
	check(c.WriterLease >= 100*time.Millisecond, "WriterLease", "must be at least 100ms, got %v", c.WriterLease)
	check(c.TTL >= c.WriterLease, "TTL", "must be at least WriterLease (%v), got %v", c.WriterLease, c.TTL)
	check(c.Coalesce == NoCoalesce || c.Coalesce >= time.Millisecond, "Coalesce", "must be at least 1ms, or NoCoalesce, got %v", c.Coalesce)
	check(c.BufferBytes > pieceSize, "BufferBytes", "must be at least %d, got %d", pieceSize+1, c.BufferBytes)
	check(c.Buckets >= 1 && c.Buckets <= 1024, "Buckets", "must be 1 to 1024, got %d", c.Buckets)
	return errors.Join(errs...)
}

// withDefaults returns a copy in which zeros are replaced.
func (c RunsConfig) withDefaults() RunsConfig {
	c.Name = orDefault(c.Name, DefaultRunsName)
	c.TTL = orDefault(c.TTL, DefaultRunTTL)
	c.WriterLease = orDefault(c.WriterLease, DefaultWriterLease)
	c.Coalesce = orDefault(c.Coalesce, DefaultRunCoalesce)
	c.BufferBytes = orDefault(c.BufferBytes, DefaultRunBufferBytes)
	c.Buckets = orDefault(c.Buckets, DefaultRunBuckets)
	if c.Codec == nil {
		c.Codec = redischannels.JSON
	}
	c.OnError = guard(c.OnError)
	return c
}

func (c RunsConfig) times() stream.RunTimes {
	return stream.RunTimes{TTL: c.TTL, Lease: c.WriterLease}
}

// renewal is the time between two renewals of a writer's lease, which also detect that its run
// was stopped.
func (c RunsConfig) renewal() time.Duration { return min(c.WriterLease/3, time.Second) }
