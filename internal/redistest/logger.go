package redistest

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/ThreeDotsLabs/watermill"
)

// LogEntry is one call of a [RecordingLogger].
type LogEntry struct {
	Level   string // "error", "info", "debug" or "trace"
	Message string
	Err     error // of Error, otherwise nil
	Fields  watermill.LogFields
}

// String is the entry in one line with all its fields, in the order of their names.
func (e LogEntry) String() string {
	var b strings.Builder
	b.WriteString(e.Level + ": " + e.Message)
	if e.Err != nil {
		fmt.Fprintf(&b, " err=%q", e.Err.Error())
	}
	for _, name := range slices.Sorted(maps.Keys(e.Fields)) {
		fmt.Fprintf(&b, " %s=%v", name, e.Fields[name])
	}
	return b.String()
}

// RecordingLogger is a Watermill logger that keeps what it is given. Loggers made by With
// write into the one that they come from.
type RecordingLogger struct {
	records *logRecords
	fields  watermill.LogFields
}

type logRecords struct {
	mu      sync.Mutex
	entries []LogEntry
}

var _ watermill.LoggerAdapter = (*RecordingLogger)(nil)

// NewRecordingLogger returns an empty logger.
func NewRecordingLogger() *RecordingLogger {
	return &RecordingLogger{records: new(logRecords)}
}

// Error is part of [watermill.LoggerAdapter], as are Info, Debug, Trace and With.
func (l *RecordingLogger) Error(msg string, err error, fields watermill.LogFields) {
	l.record("error", msg, err, fields)
}

func (l *RecordingLogger) Info(msg string, fields watermill.LogFields) {
	l.record("info", msg, nil, fields)
}

func (l *RecordingLogger) Debug(msg string, fields watermill.LogFields) {
	l.record("debug", msg, nil, fields)
}

func (l *RecordingLogger) Trace(msg string, fields watermill.LogFields) {
	l.record("trace", msg, nil, fields)
}

func (l *RecordingLogger) With(fields watermill.LogFields) watermill.LoggerAdapter {
	return &RecordingLogger{records: l.records, fields: l.fields.Add(fields)}
}

func (l *RecordingLogger) record(level, msg string, err error, fields watermill.LogFields) {
	entry := LogEntry{Level: level, Message: msg, Err: err, Fields: l.fields.Add(fields)}
	l.records.mu.Lock()
	defer l.records.mu.Unlock()
	l.records.entries = append(l.records.entries, entry)
}

// Entries is a copy of what was logged so far, in its order. With levels it is limited to
// them.
func (l *RecordingLogger) Entries(levels ...string) []LogEntry {
	l.records.mu.Lock()
	defer l.records.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(l.records.entries), func(e LogEntry) bool {
		return len(levels) > 0 && !slices.Contains(levels, e.Level)
	})
}

// Lines is [RecordingLogger.Entries] as text, one line each, with all fields: what a secret
// could stand in.
func (l *RecordingLogger) Lines(levels ...string) []string {
	var lines []string
	for _, e := range l.Entries(levels...) {
		lines = append(lines, e.String())
	}
	return lines
}

// Contains reports whether a line contains the text.
func (l *RecordingLogger) Contains(text string) bool {
	return slices.ContainsFunc(l.Lines(), func(line string) bool { return strings.Contains(line, text) })
}
