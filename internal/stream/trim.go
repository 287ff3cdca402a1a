package stream

// Trim is the part of XADD that bounds the stream. At most one of MaxLen and
// MinID is above 0; the zero value trims nothing.
type Trim struct {
	MaxLen int64
	MinID  int64 // milliseconds
	Exact  bool
}

// Args returns the arguments of XADD, or nil.
func (t Trim) Args() []any {
	by := "~"
	if t.Exact {
		by = "="
	}
	switch {
	case t.MaxLen > 0:
		return []any{"maxlen", by, t.MaxLen}
	case t.MinID > 0:
		return []any{"minid", by, t.MinID}
	default:
		return nil
	}
}
