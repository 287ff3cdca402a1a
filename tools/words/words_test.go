package main

import (
	"strings"
	"testing"
)

// Each rule finds its words where a writer puts them.
func TestRules_FindTheirWords(t *testing.T) {
	samples := map[string]string{
		"package ... has":      "Package x has readers.",
		"tell, told":           "It is told to OnEvent.",
		"nobody, somebody":     "nobody else reads",
		"who only":             "and who only writes joins no group",
		"What (statement)":     "It ends. What is past, as a loop that ends.",
		"is what":              "A lease is what a consumer holds.",
		"want of":              "refused for want of memory",
		"answers ErrX":         "Close answers ErrClosed",
		"got something else":   "an entry ID, got something else",
		"hand over, hand back": "it hands the message over",
		"give back":            "entries are given back",
		"settle":               "until it is settled",
		"take up":              "no consumer takes it up",
		"hold, keep (a lease)": "it keeps its lease",
		"walk":                 "the claim walk",
		"parked":               "a parked message",
		"the dead, peers":      "entries of the dead",
		"made again, anew":     "the group is made again",
		"goes on":              "reading goes on",
		"is gone, vanish":      "the group is gone",
		"rights":               "the rights of a user",
	}
	for _, r := range rules {
		sample, ok := samples[r.name]
		if !ok {
			t.Errorf("%s: no sample", r.name)
			continue
		}
		for ending, source := range map[string]string{
			".go":  "package p\n\n// " + strings.ReplaceAll(sample, " ", "\n// ") + "\nvar x = 1\n",
			".lua": "local x = 1 -- " + sample + "\n",
			".md":  "# Title\n\n| cell | " + sample + " |\n",
		} {
			found := 0
			for _, text := range extractors[ending]([]byte(source)) {
				found += len(r.find(text.words))
			}
			if found != 1 {
				t.Errorf("%s: %d times in %q", r.name, found, source)
			}
		}
	}
}

func TestRules_OtherMeanings(t *testing.T) {
	for _, other := range []string{
		"a dead letter, and the dead letters", "What is a topic?", "`who only`", "right is better than wrong",
		"walk the sequence of events", "a settled question is one", "which goes on to the next",
	} {
		for _, text := range markdownTexts([]byte(other)) {
			for _, r := range rules {
				if at := r.find(text.words); len(at) > 0 && r.name != "settle" {
					t.Errorf("%s: found in %q", r.name, other)
				}
			}
		}
	}
}

func TestTexts_LinesAndCode(t *testing.T) {
	source := "package p\n\n// One\n// two.\n//\n// Three.\nvar x = `four\nfive` // six\n"
	var got []string
	for _, text := range goTexts([]byte(source)) {
		got = append(got, text.words)
	}
	if want := "One two.|Three.|four five|six"; strings.Join(got, "|") != want {
		t.Errorf("%q, not %q", got, want)
	}
	if line := goTexts([]byte(source))[0].line(4); line != 4 {
		t.Errorf("line %d", line)
	}
	page := markdownTexts([]byte("One `code` two\nthree.\n\n```go\n// told\n```\n\n    told\n"))
	if len(page) != 1 || page[0].words != "One _ two three." {
		t.Errorf("%v", page)
	}
}

func TestReport_LimitsAndExceptions(t *testing.T) {
	texts := []text{{file: "a.go", words: "it is told", starts: []start{{0, 7}}}}
	err := report(texts, nil)
	if err == nil || !strings.Contains(err.Error(), "a.go:7: it is told") {
		t.Errorf("%v", err)
	}
	excused, err := parseExceptions("# comment\n\na.go: is told: another meaning\n")
	if err != nil || report(texts, excused) != nil {
		t.Errorf("%v", err)
	}
	unused, _ := parseExceptions("b.go: is told: another meaning")
	if err := report(nil, unused); err == nil || !strings.Contains(err.Error(), "nothing needs") {
		t.Errorf("%v", err)
	}
	if _, err := parseExceptions("a.go: is told"); err == nil {
		t.Error("an exception without a reason")
	}
}
