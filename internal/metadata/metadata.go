// Package metadata encodes the metadata of messages as watermill-redisstream does: a msgpack map of strings.
package metadata

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/vmihailenco/msgpack/v5"
	"github.com/vmihailenco/msgpack/v5/msgpcode"
)

// UUIDField is the field of an entry that has the UUID, and a key that metadata must not have.
const UUIDField = "_watermill_message_uuid"

// pooledBytes is the largest buffer that is returned to a pool: one message with huge metadata
// must not use its memory forever.
const pooledBytes = 64 << 10

// Errors of metadata that was read. They contain no values and keys.
var (
	errForm      = errors.New("metadata is not a msgpack map of strings")
	errCut       = errors.New("metadata is cut short")
	errTrailing  = errors.New("metadata is followed by other bytes")
	errDuplicate = errors.New("metadata has a key twice")
	errReserved  = fmt.Errorf("metadata has the reserved key %s", UUIDField)
)

// writer is a msgpack encoder and the buffer that it appends to.
type writer struct {
	buf  []byte
	keys []string
	enc  *msgpack.Encoder
}

var writers = sync.Pool{New: func() any {
	w := new(writer)
	w.enc = msgpack.NewEncoder(w)
	return w
}}

// Write implements io.Writer.
func (w *writer) Write(p []byte) (int, error) {
	w.buf = append(w.buf, p...)
	return len(p), nil
}

// WriteByte implements io.ByteWriter, which saves the encoder a buffer.
func (w *writer) WriteByte(c byte) error {
	w.buf = append(w.buf, c)
	return nil
}

// Marshal returns a UUID and metadata in wire form, in new memory of one allocation. The second
// one is empty without metadata. Keys are sorted, so equal messages have equal bytes.
func Marshal(uuid string, metadata message.Metadata) (id, raw []byte, err error) {
	if metadata[UUIDField] != "" {
		return nil, nil, errReserved
	}
	if len(metadata) == 0 {
		return []byte(uuid), nil, nil
	}

	w := writers.Get().(*writer)
	defer w.release()
	w.buf = append(w.buf[:0], uuid...)
	if err := w.encode(metadata); err != nil {
		return nil, nil, err
	}
	both := slices.Clone(w.buf)
	n := len(uuid)
	return both[:n:n], both[n:], nil
}

func (w *writer) encode(metadata message.Metadata) error {
	for key := range metadata {
		w.keys = append(w.keys, key)
	}
	slices.Sort(w.keys)
	if err := w.enc.EncodeMapLen(len(metadata)); err != nil {
		return err
	}
	for _, key := range w.keys {
		if err := w.enc.EncodeString(key); err != nil {
			return err
		}
		if err := w.enc.EncodeString(metadata[key]); err != nil {
			return err
		}
	}
	return nil
}

// release returns the writer to the pool without the strings of the message.
func (w *writer) release() {
	clear(w.keys)
	w.keys = w.keys[:0]
	if w.reusable() {
		writers.Put(w)
	}
}

// reusable reports whether the writer is small enough to be kept.
func (w *writer) reusable() bool {
	return cap(w.buf) <= pooledBytes && cap(w.keys) <= pooledBytes/16
}

// reader is a msgpack decoder and the text that it reads.
type reader struct {
	text strings.Reader
	dec  *msgpack.Decoder
}

var readers = sync.Pool{New: func() any {
	r := new(reader)
	r.dec = msgpack.NewDecoder(&r.text)
	return r
}}

// Unmarshal adds the pairs of a msgpack map to metadata. An empty raw and msgpack nil mean no
// pairs. All keys and values share one copy of raw, and each length is compared with the
// remaining bytes before it is used, so the cost is bounded by the size of raw.
func Unmarshal(metadata message.Metadata, raw []byte) error {
	if len(raw) == 0 {
		return nil
	}
	// The decoder would skip the header of an extension before the map.
	if msgpcode.IsExt(raw[0]) {
		return errForm
	}
	r := readers.Get().(*reader)
	defer readers.Put(r)
	text := string(raw)
	r.text.Reset(text)
	defer r.text.Reset("")

	pairs, err := r.dec.DecodeMapLen()
	if err != nil {
		return problem(err)
	}
	if pairs < 0 && raw[0] != msgpcode.Nil { // 2^31 and more where int has 32 bits
		return errCut
	}
	for i := range pairs {
		key, err := r.next(text)
		if err != nil {
			return err
		}
		value, err := r.next(text)
		if err != nil {
			return err
		}
		metadata[key] = value
		if len(metadata) != i+1 {
			return errDuplicate
		}
	}
	switch {
	case r.text.Len() > 0:
		return errTrailing
	case metadata[UUIDField] != "":
		// Such a message could be read but never published again.
		return errReserved
	}
	return nil
}

// next returns the string, binary or nil that follows as a part of text.
func (r *reader) next(text string) (string, error) {
	code, err := r.dec.PeekCode()
	if err != nil {
		return "", errCut
	}
	n, err := r.dec.DecodeBytesLen()
	if err != nil {
		return "", problem(err)
	}
	if code == msgpcode.Nil {
		return "", nil
	}
	at := len(text) - r.text.Len()
	if n < 0 || n > len(text)-at {
		return "", errCut
	}
	_, _ = r.text.Seek(int64(n), io.SeekCurrent)
	return text[at : at+n], nil
}

// problem returns the error of the decoder: the end of the text, or the code of another type.
func problem(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errCut
	}
	return errForm
}
