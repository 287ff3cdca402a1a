package redischannels

import (
	"os"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"
)

// A new kind of event had no description of what an operator should do.
func TestDocumentation_EventKinds(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("docs/events.md")
	require.NoError(t, err)
	rows := regexp.MustCompile("(?m)^\\| `(Event[A-Za-z]+)` \\| ([^|]+) \\| [^|]+ \\| [^|]+ \\|$").FindAllStringSubmatch(string(page), -1)
	code, err := os.ReadFile("event.go")
	require.NoError(t, err)
	kinds := regexp.MustCompile(`(?m)^\t(Event[A-Za-z]+):\s+"([^"]+)",$`).FindAllStringSubmatch(string(code), -1)
	require.Len(t, kinds, len(eventKindNames)-1)
	require.Len(t, rows, len(kinds))
	for i, kind := range kinds {
		require.Equal(t, kind[1:], rows[i][1:])
	}
}
