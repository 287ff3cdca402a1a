package redischannels

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/backoff"
)

// Defaults of the configurations.
const (
	DefaultMaxInFlight     = 1
	DefaultMaxDeliveries   = 20
	DefaultMaxDeferred     = 10_000
	DefaultMinIdle         = 15 * time.Second
	DefaultClaimInterval   = 15 * time.Second
	DefaultBlockTime       = 5 * time.Second
	DefaultDrainTimeout    = 10 * time.Second
	DefaultConsumerTimeout = time.Hour
	DefaultPrefetch        = 1024
	DefaultPrefetchBytes   = 8 << 20
	DefaultPublishTimeout  = 10 * time.Second
	DefaultMaxPayload      = 64 << 20

	DefaultBackoffMin    = 100 * time.Millisecond
	DefaultBackoffMax    = 30 * time.Second
	DefaultBackoffFactor = 2.0
	DefaultBackoffJitter = 0.2
)

// Values that turn a setting off.
const (
	// NoConsumerGroup as SubscriberConfig.ConsumerGroup reads without a group, also on
	// a channel of a hub whose default is one.
	NoConsumerGroup = "-"
	// UnlimitedDeliveries as MaxDeliveries redelivers a message without a limit.
	UnlimitedDeliveries = -1
	// NeverDefer as SubscriberConfig.DeferAfter keeps all retries in memory.
	NeverDefer time.Duration = -1
	// NoPrefetch as Tuning.Prefetch fetches only entries that can be handled at once.
	NoPrefetch = -1
	// NoJitter as Backoff.Jitter makes delays exact.
	NoJitter = -1
	// NoPublishTimeout as the Timeout of a publisher leaves the limit to the messages' contexts
	// and to the Redis client.
	NoPublishTimeout time.Duration = -1
	// UnlimitedPayload as MaxPayload leaves the limit to Redis (512 MB).
	UnlimitedPayload = -1
)

// Limits of the configurations.
const (
	maxInFlightLimit = 100_000
	prefetchLimit    = 100_000
	minBlockTime     = time.Millisecond
	minMinIdle       = 30 * time.Millisecond
	maxDuration      = 365 * 24 * time.Hour
)

// Backoff is a growing delay: Min, Min*Factor, and so on up to Max. Each is changed at random by
// up to Jitter of itself.
type Backoff struct {
	Min    time.Duration // first delay, above 0. Defaults to DefaultBackoffMin
	Max    time.Duration // greatest delay. Defaults to DefaultBackoffMax, or Min if that is more
	Factor float64       // growth per attempt, 1 to 100. Defaults to DefaultBackoffFactor
	Jitter float64       // share of the delay, 0 to 1. Defaults to DefaultBackoffJitter; NoJitter turns it off
}

// withDefaults returns a copy in which zeros are replaced.
func (b Backoff) withDefaults() Backoff {
	b.Min = orDefault(b.Min, DefaultBackoffMin)
	b.Max = orDefault(b.Max, max(DefaultBackoffMax, b.Min))
	b.Factor = orDefault(b.Factor, DefaultBackoffFactor)
	b.Jitter = orDefault(b.Jitter, DefaultBackoffJitter)
	return b
}

// after returns the back-off before delivery n+1, after n deliveries.
func (b Backoff) after(n int) time.Duration { return backoff.Backoff(b).After(n) }

// validate reports a problem of a Backoff with its defaults filled in.
func (b Backoff) validate() error {
	switch {
	case b.Min < 0 || b.Min > maxDuration:
		return fmt.Errorf("Min must be above 0 and at most %v, got %v", maxDuration, b.Min)
	case b.Max < 0 || b.Max > maxDuration:
		return fmt.Errorf("Max must be above 0 and at most %v, got %v", maxDuration, b.Max)
	case b.Max < b.Min:
		return fmt.Errorf("Max (%v) must not be less than Min (%v)", b.Max, b.Min)
	case !(b.Factor >= 1 && b.Factor <= 100):
		return fmt.Errorf("Factor must be 1 to 100, got %v", b.Factor)
	case b.Jitter != NoJitter && !(b.Jitter >= 0 && b.Jitter <= 1):
		return fmt.Errorf("Jitter must be 0 to 1, or NoJitter, got %v", b.Jitter)
	}
	return nil
}

// Retention bounds a stream. At most one of MaxLen and MaxAge can be set (XADD takes one
// of MAXLEN and MINID). They remove entries while others are appended, whether or not
// every group has read them; a group that loses entries reports EventTrimmed. TrimConsumed
// removes what every group has acknowledged; MaxLen or MaxAge beside it is a hard cap. The
// zero value keeps everything.
type Retention struct {
	// MaxLen is the number of entries to keep, above 0. (XADD MAXLEN)
	MaxLen int64
	// MaxAge is the age of entries to keep, at least 1 ms, by the clock of the Redis server,
	// which sets entry IDs. A publisher reads that clock about once a minute. (XADD MINID, TIME)
	MaxAge time.Duration
	// Exact trims to the exact bound instead of whole nodes of the stream (about
	// 100 entries by default), at a cost per append. (= instead of ~)
	Exact bool
	// TrimConsumed removes entries that every consumer group has acknowledged. Defaults to none.
	TrimConsumed *TrimConsumed
}

func (r Retention) validate() error {
	switch {
	case r.MaxLen < 0:
		return fmt.Errorf("MaxLen must be above 0, or 0 for no bound, got %d", r.MaxLen)
	case r.MaxAge < 0 || r.MaxAge > 100*maxDuration || r.MaxAge > 0 && r.MaxAge < time.Millisecond:
		return fmt.Errorf("MaxAge must be at least 1ms, or 0 for no bound, got %v", r.MaxAge)
	case r.MaxLen > 0 && r.MaxAge > 0:
		return errors.New("MaxLen and MaxAge cannot be set together: XADD takes one of MAXLEN and MINID")
	case r.Exact && r.MaxLen == 0 && r.MaxAge == 0:
		return errors.New("Exact needs MaxLen or MaxAge")
	case r.TrimConsumed != nil:
		return r.TrimConsumed.validate()
	}
	return nil
}

func orDefault[T int | int64 | float64 | time.Duration](v, def T) T {
	if v == 0 {
		return def
	}
	return v
}

// fillZeros returns config with its zero fields copied from defaults, field by field in nested
// configurations. It iterates over all fields, so none can be forgotten.
func fillZeros[C any](config, defaults C) C {
	fillZeroFields(reflect.ValueOf(&config).Elem(), reflect.ValueOf(defaults))
	return config
}

func fillZeroFields(to, from reflect.Value) {
	for i := range to.NumField() {
		switch field := to.Field(i); {
		case field.Kind() == reflect.Struct && !isWhole(field.Type()):
			fillZeroFields(field, from.Field(i))
		case field.IsZero():
			field.Set(from.Field(i))
		}
	}
}

// isWhole reports a type whose fields are only meaningful together: a mixture of two Retentions
// is one that was never configured.
func isWhole(t reflect.Type) bool {
	switch t {
	case reflect.TypeFor[Backoff](), reflect.TypeFor[Retention](), reflect.TypeFor[Durability]():
		return true
	}
	return false
}

// validation collects the problems of one configuration.
type validation struct {
	prefix string
	errs   []error
}

func (v *validation) check(err error, field string) {
	if err != nil {
		v.errs = append(v.errs, fmt.Errorf("redischannels: %s.%s: %w: %w", v.prefix, field, ErrInvalidConfig, err))
	}
}

func (v *validation) addf(field, format string, args ...any) {
	v.check(fmt.Errorf(format, args...), field)
}

// within collects the problems of a nested configuration.
func (v *validation) within(field string, validate func(*validation)) {
	inner := validation{prefix: v.prefix + "." + field}
	validate(&inner)
	v.errs = append(v.errs, inner.errs...)
}

func (v *validation) intRange(field string, n, low, high int, off string) {
	switch {
	case n >= low && n <= high:
	case off != "":
		v.addf(field, "must be 1 to %d, 0 for the default, or %s, got %d", high, off, n)
	default:
		v.addf(field, "must be 1 to %d, or 0 for the default, got %d", high, n)
	}
}

func (v *validation) duration(field string, d, least time.Duration) {
	if d != 0 && (d < least || d > maxDuration) {
		v.addf(field, "must be %v to %v, or 0 for the default, got %v", least, maxDuration, d)
	}
}

func (v *validation) publishTimeout(field string, d time.Duration) {
	if d != NoPublishTimeout && (d < time.Millisecond || d > maxDuration) {
		v.addf(field, "must be %v to %v, 0 for the default, or NoPublishTimeout, got %v", time.Millisecond, maxDuration, d)
	}
}

func (v *validation) client(c redis.UniversalClient) {
	v.check(supportedClient(c), "Client")
}

func (v *validation) err() error { return errors.Join(v.errs...) }

// supportedClient reports a client that does not support separate connections for blocking reads,
// or commands per node.
func supportedClient(c redis.UniversalClient) error {
	switch c := c.(type) {
	case nil:
		return errors.New("must not be nil: pass a *redis.Client or a *redis.ClusterClient")
	case *redis.Client:
		if c == nil {
			return errors.New("must not be a nil *redis.Client")
		}
	case *redis.ClusterClient:
		if c == nil {
			return errors.New("must not be a nil *redis.ClusterClient")
		}
	default:
		return fmt.Errorf("%w: %T; pass a *redis.Client (also from NewFailoverClient) or a *redis.ClusterClient", ErrUnsupportedClient, c)
	}
	return nil
}

// validateTopic reports a topic that is not a valid Redis key.
func validateTopic(topic string) error {
	if topic == "" {
		return invalidArgument("topic", errEmpty)
	}
	return nil
}

// loggerOrDefault returns the logger of a constructor. Without one, errors must not be lost.
// [watermill.NopLogger] writes nothing.
func loggerOrDefault(logger watermill.LoggerAdapter) watermill.LoggerAdapter {
	if logger == nil {
		return defaultLogger{}
	}
	return logger
}

// defaultLogger writes errors, and the line of Subscribe, to the current slog.Default().
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

// logSubscribed writes the line of Subscribe, which has the position of a subscription. It is the
// only Info line that is written without a logger.
func logSubscribed(logger watermill.LoggerAdapter, msg string, fields watermill.LogFields) {
	if l, ok := logger.(defaultLogger); ok {
		l.log(slog.LevelInfo, msg, nil, fields)
		return
	}
	logger.Info(msg, fields)
}
