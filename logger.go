package redischannels

import (
	"context"
	"log/slog"
	"maps"
	"slices"

	"github.com/ThreeDotsLabs/watermill"
)

// loggerOrDefault returns the logger of a constructor: what needs a person must not be
// lost where none was given. [watermill.NopLogger] is silence.
func loggerOrDefault(logger watermill.LoggerAdapter) watermill.LoggerAdapter {
	if logger == nil {
		return defaultLogger{}
	}
	return logger
}

// defaultLogger writes to slog.Default(), whatever that is at the moment: errors, and the
// line of Subscribe.
type defaultLogger struct{ fields watermill.LogFields }

func (l defaultLogger) Error(msg string, err error, fields watermill.LogFields) {
	l.log(slog.LevelError, msg, err, fields)
}

func (defaultLogger) Info(string, watermill.LogFields)  {}
func (defaultLogger) Debug(string, watermill.LogFields) {}
func (defaultLogger) Trace(string, watermill.LogFields) {}

func (l defaultLogger) With(fields watermill.LogFields) watermill.LoggerAdapter {
	return defaultLogger{l.fields.Add(fields)}
}

func (l defaultLogger) log(level slog.Level, msg string, err error, fields watermill.LogFields) {
	all := l.fields.Add(fields)
	attrs := make([]slog.Attr, 0, len(all)+1)
	if err != nil {
		attrs = append(attrs, slog.Any("err", err))
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		attrs = append(attrs, slog.Any(name, all[name]))
	}
	slog.Default().LogAttrs(context.Background(), level, msg, attrs...)
}

// logSubscribed writes the line of Subscribe, which says where a subscription begins: the
// one Info line that is written where no logger was given.
func logSubscribed(logger watermill.LoggerAdapter, msg string, fields watermill.LogFields) {
	if l, ok := logger.(defaultLogger); ok {
		l.log(slog.LevelInfo, msg, nil, fields)
		return
	}
	logger.Info(msg, fields)
}
