package main

import (
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// RELEASING.md lists the modules whose code is in a program that imports the root package: an
// import that adds one is a decision, and not an accident.
func TestModules_OfTheRootPackageAreThoseOfThePage(t *testing.T) {
	page, err := os.ReadFile("../../RELEASING.md")
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?s)```text\n(.*?)```").FindSubmatch(page)
	if block == nil {
		t.Fatal("RELEASING.md has no list of modules")
	}
	list := exec.CommandContext(t.Context(), "go", "list", "-deps", "-f", "{{with .Module}}{{.Path}}{{end}}", ".")
	list.Dir = "../.."
	list.Env = append(os.Environ(), "GOWORK=off")
	out, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	got := slices.DeleteFunc(strings.Fields(string(out)), func(path string) bool { return path == module })
	slices.Sort(got)
	if got, want := slices.Compact(got), strings.Fields(string(block[1])); !slices.Equal(got, want) {
		t.Errorf("the root package needs\n%s\nand RELEASING.md lists\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
