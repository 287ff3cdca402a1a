// Command configs writes docs/configuration.md: a table of every public configuration, from the
// comments of its fields.
//
//	configs [-check] [directory]
//
// With -check it writes nothing and exits with 1 if the page differs.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
)

const page = "docs/configuration.md"

func main() {
	check := flag.Bool("check", false, "report a page that is not up to date instead of writing it")
	flag.Parse()
	root := "."
	if flag.NArg() > 0 {
		root = flag.Arg(0)
	}
	if err := run(root, *check); err != nil {
		fmt.Fprintln(os.Stderr, "configs:", err)
		os.Exit(1)
	}
}

func run(root string, check bool) error {
	packages, err := parse(root)
	if err != nil {
		return err
	}
	text, path := write(packages), filepath.Join(root, page)
	if !check {
		return os.WriteFile(path, text, 0o644)
	}
	if old, err := os.ReadFile(path); err != nil {
		return err
	} else if !bytes.Equal(old, text) {
		return errors.New(page + " is not up to date: run make docs")
	}
	return nil
}
