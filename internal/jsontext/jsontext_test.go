package jsontext

import (
	"fmt"
	"reflect"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/flaminco/redischannels/internal/redistest"
)

func TestMain(m *testing.M) { redistest.Main(m) }

// A type that JSON cannot carry is found, however deep it lies.
func TestCheckType(t *testing.T) {
	t.Parallel()
	type tree struct {
		Left, Right *tree
		hidden      chan int
		Skipped     func() `json:"-"`
		When        time.Time
		Any         any
	}
	_ = tree{hidden: nil}
	for _, good := range []any{map[time.Time]int{}, map[uint8]int{}, 1, "", []byte(nil), tree{}, &tree{}, map[string]tree{}, [2]int{}, time.Time{}} {
		require.NoError(t, CheckType(reflect.TypeOf(good)), "%T", good)
	}
	require.NoError(t, CheckType(reflect.TypeFor[any]()))
	for _, bad := range []reflect.Type{
		reflect.TypeFor[func()](), reflect.TypeFor[chan int](), reflect.TypeFor[complex128](), reflect.TypeFor[fmt.Stringer](),
		reflect.TypeFor[map[float64]int](), reflect.TypeFor[map[any]int](), reflect.TypeFor[map[struct{ A int }]int](),
		reflect.TypeFor[[]map[string]*chan int](), reflect.TypeFor[struct{ A struct{ B func() } }](),
	} {
		require.Error(t, CheckType(bad), bad)
	}
	err := CheckType(reflect.TypeFor[struct{ A struct{ B func() } }]())
	require.ErrorContains(t, err, "field A: field B: ")
}
