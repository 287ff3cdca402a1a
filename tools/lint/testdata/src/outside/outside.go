// Package outside imports the root package, as it may.
package outside

import _ "github.com/flaminco/redischannels"
