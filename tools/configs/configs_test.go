package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A comment that changes without its page would leave a table with the old default.
func TestPage_IsUpToDate(t *testing.T) {
	if err := run("../..", true); err != nil {
		t.Fatal(err)
	}
}

const source = `package planted

import "time"

const (
	DefaultWait = 3 * time.Second
	NoWait = -1
)

// A Config is a configuration. Only Client is required.
type Config struct {
	// Client is used. It is never closed.
	Client any
	// Wait is a wait|pause, at least 1 ms, for [Config]. Too low costs. Defaults to DefaultWait; NoWait turns
	// it off. (XREAD)
	Wait time.Duration
	// Key, with Wait above 1, is a key. Defaults to none.
	Key func() string
	// Authorize and Both are two fields. They default to nothing.
	Authorize, Both bool
	Nested Nested
	hidden int
}

// Nested is nested.
type Nested struct {
	Size int // size, 1 to 1,000
}

// Other is no configuration.
type Other struct{ Field int }
`

func TestWrite_EveryColumn(t *testing.T) {
	root := plant(t, source)
	page := string(read(t, root))
	for _, want := range []string{
		"## Package planted",
		"### planted.Config\n\nA Config is a configuration.\n",
		"| `Client` | `any` | required |  | Client is used. |",
		"| `Wait` | `time.Duration` | `DefaultWait`, `3 * time.Second`; off: `NoWait` | at least 1 ms | Wait is a wait\\|pause, at least 1 ms, for Config. |",
		"| `Key` | `func() string` | none |  | Key, with Wait above 1, is a key. |",
		"| `Authorize` | `bool` | nothing |  | Authorize and Both are two fields. |",
		"| `Both` | `bool` | nothing |  | Authorize and Both are two fields. |",
		"### planted.Nested",
		"| `Size` | `int` |  | 1 to 1,000 | size, 1 to 1,000 |",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("the page has no\n%s\nin\n%s", want, page)
		}
	}
	for _, wrong := range []string{"hidden", "Other"} {
		if strings.Contains(page, wrong) {
			t.Errorf("the page has %s", wrong)
		}
	}
}

func TestCheck_FindsAChangedComment(t *testing.T) {
	root := plant(t, source)
	if err := run(root, true); err != nil {
		t.Fatal(err)
	}
	changed := strings.Replace(source, "at least 1 ms", "at least 2 ms", 1)
	if err := os.WriteFile(filepath.Join(root, "planted.go"), []byte(changed), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := run(root, true); err == nil || !strings.Contains(err.Error(), "make docs") {
		t.Fatalf("a changed comment was not found: %v", err)
	}
}

// plant writes a package and its page.
func plant(t *testing.T, source string) (root string) {
	t.Helper()
	root = t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "docs"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "planted.go"), []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := run(root, false); err != nil {
		t.Fatal(err)
	}
	return root
}

func read(t *testing.T, root string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, page))
	if err != nil {
		t.Fatal(err)
	}
	return text
}
