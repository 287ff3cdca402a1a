package main

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

const introduction = `<!-- Written by tools/configs from the comments of the code: change those and run make docs. -->

# Configuration

Every configuration is a struct that its constructor takes by value. The zero value of a field means its default. A constant, not zero, turns something off. ` + "`Validate`" + ` reports all problems at once, each with the name of its field, and the constructors call it.

The tables have the first sentence of each field. The [API documentation](https://pkg.go.dev/github.com/flaminco/redischannels) has the rest: the costs of a value that is too low or too high, and the Redis command.
`

// write returns the page.
func write(packages []pkg) []byte {
	var b bytes.Buffer
	b.WriteString(introduction)
	for _, p := range packages {
		fmt.Fprintf(&b, "\n## Package %s\n", p.name)
		for _, c := range p.configs {
			fmt.Fprintf(&b, "\n### %s.%s\n\n%s\n\n", p.name[strings.LastIndex(p.name, "/")+1:], c.name, c.synopsis)
			b.WriteString("| field | type | default | range | meaning |\n|---|---|---|---|---|\n")
			for _, f := range c.fields {
				fmt.Fprintf(&b, "| `%s` | `%s` | %s | %s | %s |\n", f.name, cell(f.typ), cell(p.defaultOf(c, f)), cell(rangeOf(f)), cell(strings.TrimSpace(synopsis(f.doc))))
			}
		}
	}
	return b.Bytes()
}

func cell(text string) string { return strings.ReplaceAll(text, "|", `\|`) }

// synopsis is the first sentence of a comment, without the brackets of links. doc.Synopsis takes a
// field with the name Authorize for the name of an author.
func synopsis(text string) string {
	return link.ReplaceAllString(firstSentence.FindString(text), "$1")
}

var (
	firstSentence   = regexp.MustCompile(`^.*?(?:\.(?: |$)|$)`)
	link            = regexp.MustCompile(`\[([A-Za-z.]+)\]`)
	defaultSentence = regexp.MustCompile(`[Dd]efaults? to (.*?)(?:; (\w+) turns it off)?(?:\.(?: |$)|$)`)
	requiredFields  = regexp.MustCompile(`((?:[A-Z]\w+(?:, | and )?)+) (?:is|are) required`)
	bounds          = regexp.MustCompile(`, ((?:at least|at most|above|up to|\d[\d,]* to) (?:\d[\d,]*\d|\d|[A-Z]\w+)(?: (?:ms|s|bytes)\b)?)`)
	constantName    = regexp.MustCompile(`\b(?:[a-z]+\.)?((?:Default|No|Never|Unlimited)[A-Z]\w*)\b`)
)

// defaultOf is what the comment says of the default: with the value of a constant, and what turns
// the field off.
func (p pkg) defaultOf(c config, f field) string {
	if required := requiredFields.FindStringSubmatch(c.doc); required != nil &&
		slices.Contains(strings.FieldsFunc(strings.ReplaceAll(required[1], " and ", ","), func(r rune) bool { return r == ',' || r == ' ' }), f.name) {
		return "required"
	}
	found := defaultSentence.FindStringSubmatch(f.doc)
	if found == nil {
		return ""
	}
	text := constantName.ReplaceAllStringFunc(link.ReplaceAllString(found[1], "$1"), func(name string) string {
		if value := p.constants[name]; value != "" {
			return fmt.Sprintf("`%s`, `%s`", name, value)
		}
		return "`" + name + "`"
	})
	if found[2] != "" {
		text += "; off: `" + found[2] + "`"
	}
	return text
}

// rangeOf returns the bounds in the first sentence of the comment, which stand behind a comma.
func rangeOf(f field) string {
	if found := bounds.FindStringSubmatch(synopsis(f.doc)); found != nil {
		return found[1]
	}
	return ""
}
