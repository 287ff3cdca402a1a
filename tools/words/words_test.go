package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Each row of the house style, with the words that it replaces. The first table has sentences,
// the second one terms.
var rows = map[string][]string{
	"package ... has":  {"Package x has readers."},
	"tell, told":       {"It is told to OnEvent.", "Stats tells the lag", "they tell the caller"},
	"nobody, somebody": {"nobody else reads", "somebody claims it", "whoever reads it", "everyone who reads"},
	"who":              {"and who only writes joins no group", "the one who reads", "Who asks gets it."},
	"What (statement)": {"It ends. What is past, as a loop that ends.", "What holds", "What it rests on"},
	"is what":          {"A lease is what a consumer holds.", "they are what Redis has", "it becomes what it was"},
	"what (noun)":      {"of what it has read", "the sum of what follows", "it returns what was read"},
	"want of":          {"refused for want of memory"},
	"answers":          {"Close answers ErrClosed", "Redis answered", "until it is answered"},

	"got something else":      {"an entry ID, got something else", "the key holds something else"},
	"rests on, proves":        {"the guarantee rests on Redis", "the average rests on it"},
	"hand over, hand back":    {"it hands the message over", "entries are handed back", "handed to a handler", "to hand it out"},
	"settle":                  {"until it is settled", "a settlement", "it settles each message"},
	"give back":               {"entries are given back", "it gives the entry back", "they are put back"},
	"take up, take over":      {"no consumer takes it up", "it is taken back"},
	"walk":                    {"the claim walk", "it walks the list"},
	"a look, looks at":        {"at its next look", "it looks at the list", "each look costs a command", "it looks whether one is due"},
	"hold, keep (a lease)":    {"it keeps its lease", "a held entry", "entries that it holds"},
	"hold back, hold up":      {"it holds back the others", "a key that is held up"},
	"parked":                  {"a parked message", "it parks the entry"},
	"pass (skip)":             {"the entry is passed, and reported"},
	"give up (a message)":     {"the message is given up", "it gives a message up"},
	"the dead, dead ones":     {"entries of the dead", "a dead consumer", "the dead process"},
	"peers":                   {"its peers claim them"},
	"made again, begins anew": {"the group is made again", "reading begins anew", "the scan begins again"},
	"goes on":                 {"reading goes on", "it went on"},
	"is gone, vanish":         {"the group is gone", "entries vanish"},
	"rights":                  {"the rights of a user", "a missing right", "the right to delete"},
	"for ever":                {"it waits for ever"},
	"British spelling":        {"a cancelled context", "the marshalled value", "its neighbours", "this behaviour"},
}

// planted returns a word of a row as a writer puts it into a file.
func planted(ending, words string) string {
	switch ending {
	case ".go":
		return "package p\n\n// " + strings.ReplaceAll(words, " ", "\n// ") + "\nvar x = 1\n"
	case ".lua":
		return "local x = 1 -- " + words + "\n"
	}
	return "# Title\n\n| cell | " + words + " |\n"
}

func TestRules_FindTheWordsOfEachRow(t *testing.T) {
	for _, r := range rules {
		if len(rows[r.name]) == 0 {
			t.Errorf("%s: no words", r.name)
		}
		for _, words := range rows[r.name] {
			for _, ending := range []string{".go", ".lua", ".md"} {
				found := 0
				for _, text := range extractors[ending]([]byte(planted(ending, words))) {
					found += len(r.find(text.words))
				}
				if found == 0 {
					t.Errorf("%s: not found in %q", r.name, planted(ending, words))
				}
			}
		}
	}
	if len(rows) != len(rules) {
		t.Errorf("%d rows, %d rules", len(rows), len(rules))
	}
}

// A word of each row, planted in a small tree, fails the check.
func TestRead_PlantedWordFails(t *testing.T) {
	for row, words := range rows {
		for _, name := range []string{"a.go", "a.md", "a.lua"} {
			root := t.TempDir()
			if err := os.WriteFile(filepath.Join(root, name), []byte(planted(filepath.Ext(name), words[0])), 0o600); err != nil {
				t.Fatal(err)
			}
			texts, err := read(root)
			if err != nil {
				t.Fatal(err)
			}
			if err := report(texts, nil); err == nil || !strings.Contains(err.Error(), name+":") {
				t.Errorf("%s in %s: %v", row, name, err)
			}
		}
	}
}

func TestRules_OtherMeanings(t *testing.T) {
	for _, other := range []string{
		"a dead letter, and the dead letters", "What is a topic?", "`who only`", "right is better than wrong",
		"which goes on to the next", "a value that is passed to the codec", "the answers of the assistant",
		"the client gives up after a second", "a dead connection",
	} {
		for _, text := range markdownTexts([]byte(other)) {
			for _, r := range rules {
				if at := r.find(text.words); len(at) > 0 {
					t.Errorf("%s: found in %q", r.name, other)
				}
			}
		}
	}
}

func TestReport_TestsAreNotCounted(t *testing.T) {
	words := []start{{0, 1}}
	test := text{file: "a_test.go", words: "of what it has", starts: words}
	if err := report([]text{test}, nil); err != nil {
		t.Error(err)
	}
	test.file = "a.go"
	if err := report([]text{test}, nil); err == nil {
		t.Error("a word outside of tests is not found")
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
