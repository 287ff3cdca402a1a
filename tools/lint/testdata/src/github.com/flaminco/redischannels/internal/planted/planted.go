package planted

import (
	_ "github.com/flaminco/redischannels" // want `an internal package knows nothing of the public one`
	_ "github.com/flaminco/redischannels/internal/lifecycle/lifecycletest"
)
