package planted

import (
	"testing"

	_ "github.com/flaminco/redischannels" // want `an internal package knows nothing of the public one`
)

func TestNothing(*testing.T) {}
