package main

import (
	"testing"

	"golang.org/x/tools/go/analysis/analysistest"
)

// Each rule finds what testdata has planted for it, and nothing else there.
func TestRules_FindWhatIsPlanted(t *testing.T) {
	planted := map[string][]string{
		"errorlint": {"errorlint"},
		"layers":    {module + "/internal/planted", "outside"},
		"testify":   {"testify", testKit},
		"sleep":     {"sleep"},
	}
	analyzers, err := rules()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range analyzers {
		t.Run(a.Name, func(t *testing.T) {
			if planted[a.Name] == nil {
				t.Fatal("nothing is planted for this rule")
			}
			analysistest.Run(t, analysistest.TestData(), a, planted[a.Name]...)
		})
		delete(planted, a.Name)
	}
	if len(planted) > 0 {
		t.Errorf("no rule looks for %v", planted)
	}
}
