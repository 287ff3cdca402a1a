package main

import (
	"go/scanner"
	"go/token"
	"regexp"
	"sort"
	"strings"
)

// text is one comment, string or page: its words, each piece of white space one space.
type text struct {
	file   string
	words  string
	starts []start // of lines, by their place in words
}

// start says that a line begins at a place in the words of a text.
type start struct{ at, line int }

// isTest reports whether the text belongs to a test or to the test kit.
func (t text) isTest() bool {
	return strings.HasSuffix(t.file, "_test.go") || strings.HasPrefix(t.file, "internal/redistest/")
}

// line returns the number of the line of a place in t.words.
func (t text) line(at int) int {
	i := sort.Search(len(t.starts), func(i int) bool { return t.starts[i].at > at })
	return t.starts[max(i-1, 0)].line
}

// around returns the words of a place and those beside it.
func (t text) around(at []int) string {
	return t.words[max(at[0]-40, 0):min(at[1]+40, len(t.words))]
}

// add appends a line.
func (t *text) add(line int, words string) {
	words = strings.Join(strings.Fields(words), " ")
	if words == "" {
		return
	}
	if t.words != "" {
		t.words += " "
	}
	t.starts = append(t.starts, start{len(t.words), line})
	t.words += words
}

// extractors find the texts of a file, by its ending.
var extractors = map[string]func(source []byte) []text{".go": goTexts, ".lua": luaTexts, ".md": markdownTexts}

// goTexts returns the comments, those on lines that follow each other as one, and the strings.
func goTexts(source []byte) []text {
	files := token.NewFileSet()
	file := files.AddFile("", files.Base(), len(source))
	var s scanner.Scanner
	s.Init(file, source, nil, scanner.ScanComments)
	var texts []text
	var comment text
	last := -1 // line of the comment before
	for {
		pos, kind, literal := s.Scan()
		line := file.Line(pos)
		if kind != token.COMMENT && kind != token.SEMICOLON || kind == token.COMMENT && line != last+1 {
			texts, comment = flush(texts, comment)
		}
		switch kind {
		case token.EOF:
			return texts
		case token.COMMENT:
			if strings.HasPrefix(literal, "//go:") || strings.HasPrefix(literal, "//nolint") {
				continue
			}
			for i, l := range strings.Split(strings.Trim(literal, "/*"), "\n") {
				if strings.TrimSpace(strings.TrimPrefix(l, "//")) == "" {
					texts, comment = flush(texts, comment)
				}
				comment.add(line+i, strings.TrimPrefix(l, "//"))
				last = line + i
			}
		case token.STRING:
			var t text
			for i, l := range strings.Split(strings.Trim(literal, "\"`"), "\n") {
				t.add(line+i, l)
			}
			texts, _ = flush(texts, t)
		}
	}
}

func flush(texts []text, t text) ([]text, text) {
	if t.words != "" {
		texts = append(texts, t)
	}
	return texts, text{}
}

// luaTexts returns the comments.
func luaTexts(source []byte) []text {
	var texts []text
	var comment text
	for i, line := range strings.Split(string(source), "\n") {
		_, words, ok := strings.Cut(line, "--")
		if !ok {
			texts, comment = flush(texts, comment)
			continue
		}
		comment.add(i+1, strings.Trim(words, "-[]"))
	}
	texts, _ = flush(texts, comment)
	return texts
}

var inlineCode = regexp.MustCompile("`[^`]*`|\\]\\([^)]*\\)")

// markdownTexts returns the paragraphs, headings and cells of tables, without code.
func markdownTexts(source []byte) []text {
	var texts []text
	var paragraph text
	code := false
	for i, line := range strings.Split(string(source), "\n") {
		trimmed := strings.TrimSpace(line)
		switch fence := strings.HasPrefix(trimmed, "```"); {
		case fence:
			code = !code
			fallthrough
		case code, trimmed == "", strings.HasPrefix(line, "    ") && paragraph.words == "":
			texts, paragraph = flush(texts, paragraph)
		default:
			words := inlineCode.ReplaceAllString(strings.TrimLeft(trimmed, "#>-*0123456789. "), "_")
			if strings.ContainsAny(trimmed[:1], "#-*|0123456789") {
				texts, paragraph = flush(texts, paragraph)
			}
			for _, cell := range strings.Split(words, "|") {
				if strings.HasPrefix(trimmed, "|") {
					texts, paragraph = flush(texts, paragraph)
				}
				paragraph.add(i+1, cell)
			}
			if strings.HasPrefix(trimmed, "#") {
				texts, paragraph = flush(texts, paragraph)
			}
		}
	}
	texts, _ = flush(texts, paragraph)
	return texts
}
