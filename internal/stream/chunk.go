package stream

import (
	"sync"
	"sync/atomic"
)

// chunkSize is up to which size a reply is read into a chunk.
const chunkSize = 512 << 10

// aroundEntry is about what a reply has around the names and values of an entry.
const aroundEntry = 128

// Fitting returns how many entries of a size a read should ask for: the reply to more does
// not fit into a chunk. It is 1 where one does not.
func Fitting(size int) int { return max(1, chunkSize/(size+aroundEntry)) }

// chunk is memory for a large reply, which its entries share. Each user counts; when
// the last one has released it, it is used again. At full speed that is what most of the
// memory would otherwise be allocated for.
type chunk struct {
	users atomic.Int32
	b     [chunkSize]byte
}

var chunks = sync.Pool{New: func() any { return new(chunk) }}

// newChunk returns a chunk with one user.
func newChunk() *chunk {
	c := chunks.Get().(*chunk)
	c.users.Store(1)
	return c
}

// share counts another user. A nil chunk stands for memory that is not used again.
func (c *chunk) share() *chunk {
	if c != nil {
		c.users.Add(1)
	}
	return c
}

func (c *chunk) release() {
	if c == nil || c.users.Add(-1) > 0 {
		return
	}
	if poison {
		for i := range c.b {
			c.b[i] = 0xff
		}
	}
	chunks.Put(c)
}
