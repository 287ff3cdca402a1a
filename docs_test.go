package redischannels_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Every block of Go in a page stands, but for its indentation, in a file of examples, which
// is compiled. A page that promises something that does not compile is worse than none.
func TestDocumentationIsCompiled(t *testing.T) {
	t.Parallel()
	var code strings.Builder
	require.NoError(t, filepath.WalkDir(".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		if ok, _ := filepath.Match("example*_test.go", entry.Name()); ok {
			text, err := os.ReadFile(path)
			code.WriteString(flat(string(text)))
			return err
		}
		return nil
	}))

	pages, err := filepath.Glob("docs/*.md")
	require.NoError(t, err)
	blocks := 0
	for _, page := range append(pages, "README.md", "CONTRIBUTING.md") {
		text, err := os.ReadFile(page)
		require.NoError(t, err)
		_, rest, found := strings.Cut(string(text), "```go\n")
		for found {
			block, after, closed := strings.Cut(rest, "```")
			require.True(t, closed, "%s: a block has no end", page)
			_, rest, found = strings.Cut(after, "```go\n")
			if strings.HasPrefix(block, "package main\n") {
				continue // TestREADME_ProgramRuns builds and runs it
			}
			require.Contains(t, code.String(), flat(block), "%s: this block stands in no example:\n%s", page, block)
			blocks++
		}
	}
	require.NotZero(t, blocks)
}

// A test that a page names as the proof of something is renamed, and the promise stands there
// without one. A name that ends with ... stands for all that begin like it.
func TestDocumentationNamesTests(t *testing.T) {
	t.Parallel()
	tests := testNames(t)
	pages, err := filepath.Glob("docs/*.md")
	require.NoError(t, err)
	for _, page := range append(pages, "README.md", "CONTRIBUTING.md") {
		text, err := os.ReadFile(page)
		require.NoError(t, err)
		for _, part := range strings.Split(string(text), "`Test")[1:] {
			name, _, _ := strings.Cut("Test"+part, "`")
			prefix, shortened := strings.CutSuffix(name, "...")
			require.True(t, slices.ContainsFunc(tests, func(test string) bool {
				return test == name || shortened && strings.HasPrefix(test, prefix)
			}), "%s: there is no %s", page, name)
		}
	}
}

// A failure without a test is a claim. Every row of the page names at least one.
func TestDocumentationProvesFailureModes(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("docs/failure-modes.md")
	require.NoError(t, err)
	rows := 0
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "|") || strings.HasPrefix(line, "|---") || strings.HasPrefix(line, "| failure ") {
			continue
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		require.Len(t, cells, 3, line)
		require.Contains(t, cells[2], "`Test", line)
		rows++
	}
	require.NotZero(t, rows)
}

// testNames returns the names of all tests of the repository.
func testNames(t *testing.T) []string {
	t.Helper()
	var tests []string
	require.NoError(t, filepath.WalkDir(".", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, part := range strings.Split(string(text), "\nfunc Test")[1:] {
			name, _, _ := strings.Cut(part, "(")
			tests = append(tests, "Test"+name)
		}
		return err
	}))
	return tests
}

// Links between pages lead somewhere.
func TestDocumentationLinks(t *testing.T) {
	t.Parallel()
	pages, err := filepath.Glob("docs/*.md")
	require.NoError(t, err)
	for _, page := range append(pages, "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "RELEASING.md") {
		text, err := os.ReadFile(page)
		require.NoError(t, err)
		// Code has brackets of its own.
		var prose strings.Builder
		for i, part := range strings.Split(strings.ReplaceAll(string(text), "```", "`"), "`") {
			if i%2 == 0 {
				prose.WriteString(part)
			}
		}
		for _, part := range strings.Split(prose.String(), "](")[1:] {
			target, _, _ := strings.Cut(part, ")")
			if strings.Contains(target, "://") {
				continue
			}
			path, fragment, _ := strings.Cut(target, "#")
			path = filepath.Join(filepath.Dir(page), path)
			if target[0] == '#' {
				path = page
			}
			content, err := os.ReadFile(path)
			if info, statErr := os.Stat(path); statErr == nil && info.IsDir() {
				continue
			}
			require.NoError(t, err, "%s links to %s", page, target)
			if fragment != "" {
				require.Contains(t, anchors(string(content)), fragment, "%s links to %s", page, target)
			}
		}
	}
}

// anchors are the headings of a page in the form of a link.
func anchors(page string) []string {
	var all []string
	for line := range strings.Lines(page) {
		if !strings.HasPrefix(line, "#") {
			continue
		}
		title := strings.ToLower(strings.TrimSpace(strings.TrimLeft(line, "#")))
		all = append(all, strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case r == '-' || r == '_' || r >= 'a' && r <= 'z' || r >= '0' && r <= '9':
				return r
			}
			return -1
		}, title))
	}
	return all
}

// flat is a text without indentation and blank lines.
func flat(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" {
			b.WriteString(line + "\n")
		}
	}
	return b.String()
}
