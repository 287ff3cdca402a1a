package redistest

import (
	"bytes"
	"errors"
	"math"
	"strconv"
	"strings"
)

// This file finds the borders of requests and replies in the bytes of a connection (RESP2 and
// RESP3), and reads of them only what a proxy must know.

var errNotRESP = errors.New("not RESP")

// requestLen returns the length of the first request in buf, 0 when it is not complete. A
// request is an array of bulk strings; anything else (an inline command, TLS) is errNotRESP.
func requestLen(buf []byte) (int, error) {
	if len(buf) > 0 && buf[0] != '*' {
		return 0, errNotRESP
	}
	return replyLen(buf)
}

// replyLen returns the length of the first reply in buf with all that is nested in it, 0 when
// it is not complete.
func replyLen(buf []byte) (int, error) {
	pos := 0
	for open := 1; open > 0; open-- { // open: values that are still to come
		end := bytes.Index(buf[pos:], crlf)
		if end < 0 {
			return 0, nil
		}
		if end == 0 {
			return 0, errNotRESP
		}
		kind, head := buf[pos], string(buf[pos+1:pos+end])
		pos += end + len(crlf)
		switch kind {
		case '+', '-', ':', '_', ',', '#', '(': // complete in one line
		case '$', '=', '!': // a string of a known length; -1 is null
			n, err := strconv.Atoi(head)
			if err != nil {
				return 0, errNotRESP
			}
			if n < 0 {
				continue
			}
			if n > len(buf)-pos-len(crlf) {
				return 0, nil
			}
			pos += n + len(crlf)
		case '*', '~', '>', '%', '|': // values follow; -1 is null
			n, err := strconv.Atoi(head)
			if err != nil || n > math.MaxInt32 {
				return 0, errNotRESP
			}
			if kind == '%' || kind == '|' {
				n *= 2
			}
			open += max(n, 0)
			if kind == '|' { // attributes stand before the value that they describe
				open++
			}
		default:
			return 0, errNotRESP
		}
	}
	return pos, nil
}

var crlf = []byte("\r\n")

// isPush reports whether a reply is an out-of-band message of RESP3, which answers nothing.
func isPush(reply []byte) bool { return len(reply) > 0 && reply[0] == '>' }

// requestWords returns the first n arguments of a complete request in lower case.
func requestWords(request []byte, n int) []string {
	var words []string
	_, rest, _ := bytes.Cut(request, crlf) // "*3"
	for len(words) < n && len(rest) > 0 {
		head, tail, _ := bytes.Cut(rest, crlf) // "$4"
		if len(head) < 2 {
			break
		}
		size, err := strconv.Atoi(string(head[1:]))
		if err != nil || size < 0 || size > len(tail)-len(crlf) {
			break
		}
		words = append(words, strings.ToLower(string(tail[:size])))
		rest = tail[size+len(crlf):]
	}
	return words
}

// Match reports whether a request, in its raw bytes as a client sends it, is the one meant.
type Match func(request []byte) bool

// Command matches a request by its command, whatever its case: "XADD", or with the
// subcommand "XGROUP CREATE".
func Command(name string) Match {
	want := strings.Fields(strings.ToLower(name))
	return func(request []byte) bool {
		words := requestWords(request, len(want))
		if len(words) < len(want) {
			return false
		}
		for i, w := range want {
			if words[i] != w {
				return false
			}
		}
		return true
	}
}

// Script matches the execution of a script: EVAL, EVALSHA, FCALL and their read-only forms.
// A script is known by its hash only; And(Script(), Contains(key)) narrows it down.
func Script() Match {
	return func(request []byte) bool {
		for _, word := range requestWords(request, 1) {
			switch strings.TrimSuffix(word, "_ro") {
			case "eval", "evalsha", "fcall":
				return true
			}
		}
		return false
	}
}

// Contains matches a request that contains the text in one of its arguments, for example the
// name of a key or a value.
func Contains(text string) Match {
	return func(request []byte) bool { return bytes.Contains(request, []byte(text)) }
}

// And matches what all of them match.
func And(all ...Match) Match {
	return func(request []byte) bool {
		for _, match := range all {
			if !match(request) {
				return false
			}
		}
		return true
	}
}

// Any matches every request.
func Any() Match { return func([]byte) bool { return true } }

// NotNil is a condition for a reply: anything but null, for example an XREADGROUP that has
// returned entries and not run into its BLOCK time.
func NotNil(reply []byte) bool {
	for _, null := range []string{"_", "*-1", "$-1"} {
		if string(reply) == null+"\r\n" {
			return false
		}
	}
	return true
}
