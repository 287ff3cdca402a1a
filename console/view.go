package console

import (
	"bytes"
	"embed"
	"fmt"
	"html/template"
	"net/url"
	"strings"
	"time"
)

//go:embed templates
var templateFiles embed.FS

var templates = template.Must(template.New("").Funcs(template.FuncMap{
	"number": number, "age": age, "size": size, "link": link, "clock": clock,
}).ParseFS(templateFiles, "templates/*.html"))

// view is what a page shows.
type view struct {
	Title   string
	Crumbs  []crumb
	Section string // of the navigation
	Problem string
	Done    string // what the last action has done
	Parts   []part

	Prefix string
	Live   string // address of the stream that keeps the page up to date; empty for none
	Access Access
}

type crumb struct{ Name, Link string }

// part is a piece of a page that is replaced when it has changed.
type part struct {
	ID   string
	Name string // of its template
	Data any

	HTML   template.HTML
	Prefix string
	Access Access
	Now    time.Time
}

// fill renders the parts of a view.
func (v *view) fill(r request) error {
	v.Prefix, v.Access = r.prefix, r.access
	for i := range v.Parts {
		p := &v.Parts[i]
		p.Prefix, p.Access, p.Now = r.prefix, r.access, r.now
		var text bytes.Buffer
		if err := templates.ExecuteTemplate(&text, p.Name, p); err != nil {
			return fmt.Errorf("template %s: %w", p.Name, err)
		}
		p.HTML = template.HTML(text.String()) // escaped by its template
	}
	return nil
}

// link returns the path of a page from its parts, each of which may have any character.
func link(prefix string, parts ...string) string {
	var b strings.Builder
	b.WriteString(prefix)
	for _, p := range parts {
		b.WriteByte('/')
		b.WriteString(url.PathEscape(p))
	}
	return b.String()
}

// number writes an integer with spaces between its thousands.
func number(n int64) string {
	text := fmt.Sprint(n)
	for i := len(text) - 3; i > 0 && text[i-1] != '-'; i -= 3 {
		text = text[:i] + "\u202f" + text[i:]
	}
	return text
}

// size writes a number of bytes.
func size(n int64) string {
	value, unit := float64(n), "B"
	for _, next := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if value < 1024 {
			break
		}
		value, unit = value/1024, next
	}
	if unit == "B" {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", value, unit)
}

// age writes a duration by its two greatest units.
func age(d time.Duration) string {
	switch {
	case d < 0:
		return "–"
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return d.Round(time.Second).String()
	case d < time.Hour:
		return twoUnits(d, time.Minute, "m", time.Second, "s")
	case d < 48*time.Hour:
		return twoUnits(d, time.Hour, "h", time.Minute, "m")
	}
	return twoUnits(d, 24*time.Hour, "d", time.Hour, "h")
}

func twoUnits(d, great time.Duration, greatName string, small time.Duration, smallName string) string {
	text := fmt.Sprintf("%d%s", d/great, greatName)
	if rest := d % great / small; rest > 0 {
		text += fmt.Sprintf(" %d%s", rest, smallName)
	}
	return text
}

// clock writes a time, to the second, in UTC: servers and readers are in several zones.
func clock(t time.Time) string {
	if t.IsZero() {
		return "–"
	}
	return t.UTC().Format("2006-01-02 15:04:05")
}
