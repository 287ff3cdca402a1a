package redischannels

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

// pooledBytes is the largest buffer that goes back to a pool: one message with
// huge metadata must not cost its memory for ever.
const pooledBytes = 64 << 10

// What can be wrong with metadata that was read. Values and keys stay out of it.
var (
	errMetadataForm      = errors.New("metadata is not a msgpack map of strings")
	errMetadataCut       = errors.New("metadata is cut short")
	errMetadataTrailing  = errors.New("metadata is followed by other bytes")
	errMetadataDuplicate = errors.New("metadata has a key twice")
	errMetadataReserved  = fmt.Errorf("metadata has the reserved key %s", uuidField)
)

// metadataWriter is a msgpack encoder and the buffer that it appends to.
type metadataWriter struct {
	buf  []byte
	keys []string
	enc  *msgpack.Encoder
}

var metadataWriters = sync.Pool{New: func() any {
	w := new(metadataWriter)
	w.enc = msgpack.NewEncoder(w)
	return w
}}

// Write implements io.Writer.
func (w *metadataWriter) Write(p []byte) (int, error) {
	w.buf = append(w.buf, p...)
	return len(p), nil
}

// WriteByte implements io.ByteWriter, which spares the encoder a buffer.
func (w *metadataWriter) WriteByte(c byte) error {
	w.buf = append(w.buf, c)
	return nil
}

// marshalIDs returns the UUID and the metadata in wire form, both in memory of
// their own, of which they share one allocation. The metadata is empty where the
// message has none. Keys are sorted, so equal messages have equal bytes.
func marshalIDs(topic string, msg *message.Message) (uuid, metadata []byte, err error) {
	if msg.Metadata[uuidField] != "" {
		return nil, nil, marshalError(topic, msg, errMetadataReserved.Error())
	}
	if len(msg.Metadata) == 0 {
		return []byte(msg.UUID), nil, nil
	}

	w := metadataWriters.Get().(*metadataWriter)
	defer w.release()
	w.buf = append(w.buf[:0], msg.UUID...)
	if err := w.encode(msg.Metadata); err != nil {
		return nil, nil, marshalError(topic, msg, err.Error())
	}
	both := slices.Clone(w.buf)
	n := len(msg.UUID)
	return both[:n:n], both[n:], nil
}

func (w *metadataWriter) encode(metadata message.Metadata) error {
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

// release gives the writer back without the strings of the message.
func (w *metadataWriter) release() {
	clear(w.keys)
	w.keys = w.keys[:0]
	if w.reusable() {
		metadataWriters.Put(w)
	}
}

// reusable reports whether the writer is small enough to be kept.
func (w *metadataWriter) reusable() bool {
	return cap(w.buf) <= pooledBytes && cap(w.keys) <= pooledBytes/16
}

// metadataReader is a msgpack decoder and the text that it reads.
type metadataReader struct {
	text strings.Reader
	dec  *msgpack.Decoder
}

var metadataReaders = sync.Pool{New: func() any {
	r := new(metadataReader)
	r.dec = msgpack.NewDecoder(&r.text)
	return r
}}

// unmarshalMetadata adds the pairs of a msgpack map to metadata. Nothing in raw
// and msgpack nil stand for no pairs. All keys and values share one copy of raw,
// and no announced length is believed before it is compared with what is there,
// so the cost is bounded by the size of raw.
func unmarshalMetadata(metadata message.Metadata, raw []byte) error {
	if len(raw) == 0 {
		return nil
	}
	// The decoder would skip the header of an extension in front of the map.
	if msgpcode.IsExt(raw[0]) {
		return errMetadataForm
	}
	r := metadataReaders.Get().(*metadataReader)
	defer metadataReaders.Put(r)
	text := string(raw)
	r.text.Reset(text)
	defer r.text.Reset("")

	pairs, err := r.dec.DecodeMapLen()
	if err != nil {
		return metadataProblem(err)
	}
	if pairs < 0 && raw[0] != msgpcode.Nil { // 2^31 and more where int has 32 bits
		return errMetadataCut
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
			return errMetadataDuplicate
		}
	}
	switch {
	case r.text.Len() > 0:
		return errMetadataTrailing
	case metadata[uuidField] != "":
		// Such a message could be read but never published again.
		return errMetadataReserved
	}
	return nil
}

// next returns the string, binary or nil that follows as a part of text.
func (r *metadataReader) next(text string) (string, error) {
	code, err := r.dec.PeekCode()
	if err != nil {
		return "", errMetadataCut
	}
	n, err := r.dec.DecodeBytesLen()
	if err != nil {
		return "", metadataProblem(err)
	}
	if code == msgpcode.Nil {
		return "", nil
	}
	at := len(text) - r.text.Len()
	if n < 0 || n > len(text)-at {
		return "", errMetadataCut
	}
	_, _ = r.text.Seek(int64(n), io.SeekCurrent)
	return text[at : at+n], nil
}

// metadataProblem returns what made the decoder give up: the end of the text, or a
// code that stands for another type.
func metadataProblem(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errMetadataCut
	}
	return errMetadataForm
}
