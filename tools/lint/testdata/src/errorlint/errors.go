package errorlint

import (
	"errors"
	"fmt"
	"io"
)

type fault struct{}

func (*fault) Error() string { return "fault" }

func compare(err error) bool {
	return err == io.ErrUnexpectedEOF // want `comparing with == will fail on wrapped errors`
}

func wrap(err error) error {
	return fmt.Errorf("planted: %v", err) // want `non-wrapping format verb`
}

func assert(err error) bool {
	_, ok := err.(*fault) // want `type assertion on error will fail on wrapped errors`
	return ok
}

func right(err error) bool {
	return errors.Is(fmt.Errorf("planted: %w", err), io.ErrUnexpectedEOF)
}

func allowed(err error) bool {
	return err == io.ErrUnexpectedEOF //nolint:errorlint // read from a pipe of our own
}

func withoutReason(err error) bool {
	//nolint:errorlint
	return err == io.ErrUnexpectedEOF // want `comparing with == will fail on wrapped errors`
}
