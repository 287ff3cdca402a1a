package main

import (
	"errors"
	"go/ast"
	"strings"

	"github.com/OpenPeeDeeP/depguard/v2"
	"github.com/ashanbrown/forbidigo/v2/pkg/analyzer"
	"github.com/polyfloyd/go-errorlint/errorlint"
	"golang.org/x/tools/go/analysis"
)

const (
	module = "github.com/flaminco/redischannels"
	// testKit is not a test itself, and used by tests alone.
	testKit = module + "/internal/lifecycle/lifecycletest"
)

// rules returns the analyzers, one per rule.
func rules() ([]*analysis.Analyzer, error) {
	layers, err := imports("layers", module+"$", "an internal package knows nothing of the public one")
	tests, err2 := imports("testify", "github.com/stretchr/testify", "a program does not carry the tools of its tests")
	sleep, err3 := sleeps()
	wrapped := errorlint.NewAnalyzer()
	if err := errors.Join(err, err2, err3, wrapped.Flags.Set("errorf", "true")); err != nil {
		return nil, err
	}
	return []*analysis.Analyzer{
		unlessAllowed(wrapped),
		only(layers, func(pkg, _ string) bool { return strings.HasPrefix(pkg, module+"/internal/") }),
		only(tests, func(pkg, file string) bool { return pkg != testKit && !isTest(file) }),
		only(sleep, func(_, file string) bool { return !isTest(file) }),
	}, nil
}

// imports refuses a package, as depguard writes it, for a reason.
func imports(name, pkg, reason string) (*analysis.Analyzer, error) {
	a, err := depguard.NewAnalyzer(&depguard.LinterSettings{name: {Deny: map[string]string{pkg: reason}}})
	if err != nil {
		return nil, err
	}
	a.Name = name
	return a, nil
}

// sleeps refuses time.Sleep, by its type: an import under another name does not hide it.
func sleeps() (*analysis.Analyzer, error) {
	a := analyzer.NewAnalyzer()
	a.Name = "sleep"
	return a, errors.Join(
		a.Flags.Set("analyze_types", "true"),
		a.Flags.Set("permit", "false"),
		a.Flags.Set("p", `{p: ^time\.Sleep$, pkg: ^time$, msg: select on a context and a timer}`),
	)
}

// only returns the analyzer for those files of a package that the function selects.
func only(a *analysis.Analyzer, selects func(pkg, file string) bool) *analysis.Analyzer {
	limited := *a
	limited.Run = func(pass *analysis.Pass) (any, error) {
		part := *pass
		part.Files = nil
		for _, file := range pass.Files {
			if selects(pass.Pkg.Path(), fileName(pass, file)) {
				part.Files = append(part.Files, file)
			}
		}
		return a.Run(&part)
	}
	return &limited
}

func fileName(pass *analysis.Pass, file *ast.File) string {
	return pass.Fset.Position(file.FileStart).Filename
}

func isTest(file string) bool { return strings.HasSuffix(file, "_test.go") }

// unlessAllowed returns the analyzer without what it finds in a line with the comment
// "//nolint:NAME // reason". A comment without a reason allows nothing.
func unlessAllowed(a *analysis.Analyzer) *analysis.Analyzer {
	limited := *a
	limited.Run = func(pass *analysis.Pass) (any, error) {
		part, allowed := *pass, allowedLines(pass, "//nolint:"+a.Name+" // ")
		part.Report = func(d analysis.Diagnostic) {
			if at := pass.Fset.Position(d.Pos); !allowed[line{at.Filename, at.Line}] {
				pass.Report(d)
			}
		}
		return a.Run(&part)
	}
	return &limited
}

type line struct {
	file   string
	number int
}

// allowedLines returns the lines with a comment that begins with directive.
func allowedLines(pass *analysis.Pass, directive string) map[line]bool {
	allowed := map[line]bool{}
	for _, file := range pass.Files {
		for _, group := range file.Comments {
			for _, comment := range group.List {
				if at := pass.Fset.Position(comment.Pos()); strings.HasPrefix(comment.Text, directive) {
					allowed[line{at.Filename, at.Line}] = true
				}
			}
		}
	}
	return allowed
}
