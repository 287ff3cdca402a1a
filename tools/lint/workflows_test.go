package main

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// A workflow runs commands that a contributor can run too: targets of the Makefile that exist.
func TestWorkflows_RunTargetsOfTheMakefile(t *testing.T) {
	makefile, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	workflows, err := filepath.Glob("../../.github/workflows/*.yml")
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for _, path := range workflows {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, match := range regexp.MustCompile(`(?m)run: make ([a-z-]+)`).FindAllSubmatch(text, -1) {
			target := string(match[1])
			found[target] = true
			if !regexp.MustCompile(`(?m)^` + target + `:`).Match(makefile) {
				t.Errorf("%s runs make %s, which is not in the Makefile", path, target)
			}
		}
	}
	for _, target := range []string{"lint", "test", "test-servers", "fuzz", "soak"} {
		if !found[target] {
			t.Errorf("no workflow runs make %s", target)
		}
	}
}
