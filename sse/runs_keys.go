package sse

import (
	"fmt"
	"hash/fnv"
	"strings"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/redisconn"
	"github.com/flaminco/redischannels/internal/stream"
)

// maxRunID is the maximum length in bytes.
const maxRunID = 256

// key returns the keys of a run.
func (r *Runs[T]) key(id string) (stream.RunID, error) {
	if id == "" || len(id) > maxRunID {
		return stream.RunID{}, fmt.Errorf("redischannels/sse: run ID: %w: must have 1 to %d bytes, got %d", redischannels.ErrInvalidArgument, maxRunID, len(id))
	}
	bucket := r.bucket(id)
	return stream.RunID{ID: id, Record: r.prefix(bucket) + "run:" + id, Entries: r.prefix(bucket) + "events:" + id, Index: r.index(bucket)}, nil
}

func (r *Runs[T]) bucket(id string) int {
	h := fnv.New32a()
	_, _ = h.Write([]byte(id)) // never an error
	return int(h.Sum32() % uint32(r.config.Buckets))
}

func (r *Runs[T]) link(id string) *redisconn.Link { return r.links[r.bucket(id)] }

func (r *Runs[T]) prefix(bucket int) string {
	return fmt.Sprintf("{%s:%d}:", r.config.Name, bucket)
}

func (r *Runs[T]) index(bucket int) string { return r.prefix(bucket) + "index" }

// validName reports whether a name is valid in a hash tag.
func validName(name string) bool { return name != "" && !strings.ContainsAny(name, "{}\r\n\x00") }
