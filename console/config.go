package console

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/inspect"
)

// Access is what a request may do. The zero value may only look at numbers and names.
type Access struct {
	// Act permits actions: to pause and resume a group, to requeue and purge dead letters.
	Act bool
	// Payloads shows payloads and metadata, which may be personal data.
	Payloads bool
	// Name is the actor in the audit stream. Defaults to Config.Inspect.Actor.
	Name string
}

// ErrDenied, returned by Config.Authorize, is answered with status 403.
var ErrDenied = errors.New("denied")

// Config configures [New]. Only Inspect.Client is required.
type Config struct {
	// Inspect configures what reads and acts.
	Inspect inspect.Config

	// Unmarshaler makes the messages that pages show of entries: that of the consumers. Defaults to
	// WatermillMarshaler.
	Unmarshaler redischannels.Unmarshaler

	// Prefix is the path at which the page is mounted, such as "/redis": with a leading slash and without
	// a trailing one. Defaults to none: it is mounted at "/".
	Prefix string

	// Authorize decides about each request. An error refuses it: [ErrDenied] with status 403, others with
	// 401. Defaults to a page that is read-only and hides payloads, for every request: mount it where only
	// operators come.
	Authorize func(*http.Request) (Access, error)
}

// Validate reports every problem of the configuration in one joined error. Each names its field and
// wraps [redischannels.ErrInvalidConfig].
func (c Config) Validate() error {
	var errs []error
	if err := c.Inspect.Validate(); err != nil {
		errs = append(errs, fmt.Errorf("redischannels/console: Config.Inspect: %w", err))
	}
	if c.Prefix != "" && (!strings.HasPrefix(c.Prefix, "/") || strings.HasSuffix(c.Prefix, "/") || strings.ContainsAny(c.Prefix, "?#{}")) {
		errs = append(errs, fmt.Errorf("redischannels/console: Config.Prefix: %w: must be a path such as /redis, without a slash at its end, got %q",
			redischannels.ErrInvalidConfig, c.Prefix))
	}
	return errors.Join(errs...)
}
