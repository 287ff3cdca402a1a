package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	_ "embed" // the sample
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

//go:embed orders.csv
var sample []byte

const (
	header = "order_id,customer,sku,quantity,unit_price,currency,country,date"

	// maxRow is the greatest length of a row in bytes. Of a longer one the first maxRow+1 bytes
	// are published, which are enough to be found too long.
	maxRow = 4096
)

// input is a CSV file that is read several times: once to know it, then to publish it.
type input struct {
	name string
	id   string // made of the content: the same content is the same import
	rows int
	file io.ReadSeeker

	remove func()
}

// row is one line of the input that is not blank.
type row struct {
	line int // in the file, from 1
	text string
}

// openInput opens a file, standard input for "-", or the sample for "".
func openInput(name string, stdin io.Reader) (*input, error) {
	in := &input{name: name, remove: func() {}}
	switch name {
	case "":
		in.name, in.file = "the sample orders.csv", bytes.NewReader(sample)
	case "-":
		in.name = "standard input"
		if err := in.spool(stdin); err != nil {
			return nil, err
		}
	default:
		file, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		info, err := file.Stat()
		switch {
		case err != nil:
			_ = file.Close()
			return nil, err
		case info.IsDir():
			_ = file.Close()
			return nil, fmt.Errorf("%s is a directory, not a CSV file", name)
		case info.Mode().IsRegular():
			in.file, in.remove = file, func() { _ = file.Close() }
		default: // a pipe
			err := in.spool(file)
			_ = file.Close()
			if err != nil {
				return nil, err
			}
		}
	}
	if err := in.inspect(); err != nil {
		in.close()
		return nil, fmt.Errorf("%s: %w", in.name, err)
	}
	return in, nil
}

// spool copies what can be read only once to a temporary file.
func (in *input) spool(r io.Reader) error {
	file, err := os.CreateTemp("", "orders-*.csv")
	if err != nil {
		return err
	}
	in.remove = func() {
		_ = file.Close()
		_ = os.Remove(file.Name())
	}
	in.file = file
	if _, err := io.Copy(file, r); err != nil {
		in.remove()
		return fmt.Errorf("read %s: %w", in.name, err)
	}
	return nil
}

func (in *input) close() { in.remove() }

// inspect counts the rows and makes the ID of the content.
func (in *input) inspect() error {
	if _, err := in.file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	sum := sha256.New()
	rows := newRowReader(io.TeeReader(in.file, sum))
	first, err := rows.next()
	switch {
	case errors.Is(err, io.EOF):
		return errors.New("is empty: the first line must be " + header)
	case err != nil:
		return err
	case strings.TrimPrefix(first.text, "\ufeff") != header:
		return fmt.Errorf("line %d: the first line must be %s, got %q", first.line, header, shorten(first.text, 80))
	}
	for {
		_, err := rows.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		in.rows++
	}
	if in.rows == 0 {
		return errors.New("has no rows below its first line")
	}
	in.id = hex.EncodeToString(sum.Sum(nil)[:6])
	return nil
}

// after returns a reader of the rows behind a line; 1 is that of the header.
func (in *input) after(line int) (*rowReader, error) {
	if _, err := in.file.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	rows := newRowReader(in.file)
	for {
		r, err := rows.peek()
		if err != nil || r.line > max(line, rows.first) {
			return rows, nil // an error comes again with the next row
		}
		_, _ = rows.next()
	}
}

// rowReader reads one row per line. A quoted value cannot span lines, so a quote that is never
// closed spoils one row and not the rest of the file.
type rowReader struct {
	in    *bufio.Reader
	line  int
	first int // line of the header

	ahead *row
	err   error
}

func newRowReader(r io.Reader) *rowReader { return &rowReader{in: bufio.NewReaderSize(r, 64<<10)} }

// next returns the next row, or io.EOF.
func (r *rowReader) next() (row, error) {
	next, err := r.peek()
	r.ahead = nil
	return next, err
}

// peek returns the next row without taking it.
func (r *rowReader) peek() (row, error) {
	for r.ahead == nil && r.err == nil {
		var text []byte
		var part []byte
		err := bufio.ErrBufferFull
		for errors.Is(err, bufio.ErrBufferFull) {
			part, err = r.in.ReadSlice('\n')
			text = append(text, part[:min(len(part), maxRow+2-len(text))]...)
		}
		if err != nil {
			r.err = err // after this line, which may be the last one without an end
		}
		r.line++
		if s := strings.TrimRight(string(text), "\r\n"); strings.TrimSpace(s) != "" {
			r.ahead = &row{line: r.line, text: s}
			if r.first == 0 {
				r.first = r.line
			}
		}
	}
	if r.ahead == nil {
		return row{}, r.err
	}
	return *r.ahead, nil
}

// shorten cuts a text for display.
func shorten(s string, most int) string {
	s = strings.ToValidUTF8(s, "?")
	if runes := []rune(s); len(runes) > most {
		return string(runes[:most-1]) + "…"
	}
	return s
}
