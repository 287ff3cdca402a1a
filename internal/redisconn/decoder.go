package redisconn

import (
	"bufio"
	"errors"
	"fmt"
	"io"
)

// Limits of RESP in a Decoder. It must refuse other bytes before they cost memory.
const (
	decoderBuffer = 64 << 10 // bounds a line
	maxElements   = 1 << 16
	maxString     = 512 << 20 // the default limit of Redis
)

// Decoder reads RESP from a connection, value by value.
type Decoder struct{ r *bufio.Reader }

// NewDecoder returns a Decoder that reads from r.
func NewDecoder(r io.Reader) *Decoder { return &Decoder{bufio.NewReaderSize(r, decoderBuffer)} }

// Header reads the header of the next value, after any attributes. Its Text is valid until
// the next call of a method.
func (d *Decoder) Header() (Header, error) { return d.header(0) }

func (d *Decoder) header(depth int) (Header, error) {
	for {
		h, err := d.line()
		if err != nil || h.Kind != '|' {
			return h, err
		}
		if err := d.skipAll(2*h.N, depth+1); err != nil {
			return Header{}, err
		}
	}
}

// line reads one header.
func (d *Decoder) line() (Header, error) {
	line, err := d.r.ReadSlice('\n')
	if err != nil {
		if errors.Is(err, bufio.ErrBufferFull) {
			return Header{}, ErrMalformed
		}
		return Header{}, err
	}
	h, err := parseHeader(line)
	switch {
	case err != nil:
		return Header{}, err
	case h.isString() && h.N > maxString, !h.isString() && h.N > maxElements:
		return Header{}, fmt.Errorf("%w: a length of %d", ErrMalformed, h.N)
	}
	return h, nil
}

// StringHeader reads the header of a string and returns its length, -1 for nil. ReadBulk or
// Discard reads the string.
func (d *Decoder) StringHeader() (int, error) {
	h, err := d.Header()
	if err != nil {
		return 0, err
	}
	if h.Kind != '$' && h.Kind != '_' {
		return 0, fmt.Errorf("%w: a value of type %q instead of a string", ErrMalformed, h.Kind)
	}
	if h.Kind == '_' {
		return -1, nil
	}
	return h.N, nil
}

// ReadBulk reads the n bytes of a string into the memory of into, if they fit; n below 0 is a
// nil, which reads nothing.
func (d *Decoder) ReadBulk(into []byte, n int) ([]byte, error) {
	if n < 0 {
		return into, nil
	}
	if cap(into) < n {
		into = make([]byte, n)
	}
	into = into[:n]
	if _, err := io.ReadFull(d.r, into); err != nil {
		return nil, err
	}
	end, err := d.r.Peek(2)
	if err != nil {
		return nil, err
	}
	if end[0] != '\r' || end[1] != '\n' {
		return nil, ErrMalformed
	}
	_, err = d.r.Discard(2)
	return into, err
}

// ReadString reads a string into the memory of into, if it fits; nil is an empty one.
func (d *Decoder) ReadString(into []byte) ([]byte, error) {
	n, err := d.StringHeader()
	if err != nil {
		return nil, err
	}
	return d.ReadBulk(into, n)
}

// Discard reads the n bytes of a string without memory for them.
func (d *Decoder) Discard(n int) error {
	_, err := d.r.Discard(n + 2)
	return err
}

// Skip reads n values of any kind.
func (d *Decoder) Skip(n int) error { return d.skipAll(n, 0) }

// SkipRest reads the value after a header.
func (d *Decoder) SkipRest(h Header) error { return d.skipRest(h, 0) }

func (d *Decoder) skipAll(n, depth int) error {
	if depth > maxDepth {
		return ErrMalformed
	}
	for range n {
		h, err := d.header(depth)
		if err != nil {
			return err
		}
		if err := d.skipRest(h, depth); err != nil {
			return err
		}
	}
	return nil
}

func (d *Decoder) skipRest(h Header, depth int) error {
	if h.isString() {
		return d.Discard(h.N)
	}
	return d.skipAll(h.values(), depth+1)
}
