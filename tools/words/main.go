// Command words finds words in a tree that the house style replaces: in comments and strings of
// Go, in Markdown outside of code, and in comments of Lua. It prints each place and how frequent
// each word is, and exits with 1 when a word is more frequent than its rule allows.
//
// Usage: words [directory]
package main

import (
	"bufio"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

//go:embed exceptions.txt
var exceptionList string

func main() {
	root := "."
	if len(os.Args) > 1 {
		root = os.Args[1]
	}
	exceptions, err := parseExceptions(exceptionList)
	if err == nil {
		var texts []text
		if texts, err = read(root); err == nil {
			err = report(texts, exceptions)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "words:", err)
		os.Exit(1)
	}
}

// read returns the texts of all files below root, except those of tools, which has the words in
// its rules.
func read(root string) ([]text, error) {
	var texts []text
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if name := entry.Name(); path != root && (strings.HasPrefix(name, ".") || name == "testdata" || name == "tools") {
				return filepath.SkipDir
			}
			return nil
		}
		extract, ok := extractors[filepath.Ext(path)]
		if !ok {
			return nil
		}
		source, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		for _, t := range extract(source) {
			t.file = filepath.ToSlash(name)
			texts = append(texts, t)
		}
		return nil
	})
	return texts, err
}

// exception allows a word where the house style does not mean it.
type exception struct {
	file, words, reason string
	used                bool
}

// parseExceptions reads lines of the form "file: words: reason".
func parseExceptions(list string) ([]*exception, error) {
	var all []*exception
	lines := bufio.NewScanner(strings.NewReader(list))
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		parts := strings.SplitN(line, ": ", 3)
		if len(parts) != 3 || slices.Contains(parts, "") {
			return nil, fmt.Errorf(`exceptions.txt: %q is not "file: words: reason"`, line)
		}
		all = append(all, &exception{file: parts[0], words: parts[1], reason: parts[2]})
	}
	return all, lines.Err()
}

// report prints what it finds and returns an error when that is too much.
func report(texts []text, exceptions []*exception) error {
	all, product := 0, 0
	for _, t := range texts {
		n := len(strings.Fields(t.words))
		all += n
		if !t.isTest() {
			product += n
		}
	}
	var failed []error
	fmt.Printf("%d words, %d of them outside of tests; matches per 10,000:\n", all, product)
	for _, r := range rules {
		total := all
		if r.product {
			total = product
		}
		var places []string
		for _, t := range texts {
			if r.product && t.isTest() {
				continue
			}
			for _, at := range r.find(t.words) {
				if !excepted(exceptions, t, at) {
					places = append(places, fmt.Sprintf("%s:%d: %s", t.file, t.line(at[0]), t.around(at)))
				}
			}
		}
		frequency := 10_000 * float64(len(places)) / float64(max(total, 1))
		fmt.Printf("%6.2f  %-28s instead: %s\n", frequency, r.name, r.instead)
		if frequency > r.limit {
			failed = append(failed, fmt.Errorf("%s: %.2f, at most %.2f; write %s:\n  %s",
				r.name, frequency, r.limit, r.instead, strings.Join(places, "\n  ")))
		}
	}
	for _, e := range exceptions {
		if !e.used {
			failed = append(failed, fmt.Errorf("exceptions.txt: nothing needs %s: %s", e.file, e.words))
		}
	}
	return errors.Join(failed...)
}

func excepted(exceptions []*exception, t text, at []int) bool {
	for _, e := range exceptions {
		if e.file == t.file && strings.Contains(t.around(at), e.words) {
			e.used = true
			return true
		}
	}
	return false
}
