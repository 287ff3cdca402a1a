package main

import (
	"encoding/json"
	"fmt"
	"iter"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
)

// column is one of a table. The texts of a column that shrinks are cut where the table would be too wide.
type column struct {
	title   string
	shrinks bool
	right   bool
}

// leastWidth is the width below which no column shrinks.
const leastWidth = 10

// list prints what a loop yields: as a table, or as an array of JSON.
func list[T any](a *app, columns []column, loop iter.Seq2[T, error], limit int, row func(T) []string, view func(T) any) error {
	var rows [][]string
	views := []any{}
	for v, err := range loop {
		if err != nil {
			return err
		}
		if limit > 0 && len(views) == limit {
			break
		}
		rows, views = append(rows, row(v)), append(views, view(v))
	}
	if a.Output == "json" {
		return a.json(views)
	}
	a.table(columns, rows)
	return nil
}

// same is the view of a value that is JSON as it is.
func same[T any](v T) any { return v }

// all returns a loop over values.
func all[T any](values []T) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		for _, v := range values {
			if !yield(v, nil) {
				return
			}
		}
	}
}

func (a *app) json(v any) error {
	encoder := json.NewEncoder(a.out)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(v)
}

// say prints a result: as text, or as JSON.
func (a *app) say(view any, format string, args ...any) error {
	if a.Output == "json" {
		return a.json(view)
	}
	_, err := fmt.Fprintf(a.out, format+"\n", args...)
	return err
}

func (a *app) table(columns []column, rows [][]string) {
	t := table.NewWriter()
	style := table.StyleDefault
	style.Options = table.OptionsNoBordersAndSeparators
	style.Box.PaddingLeft, style.Box.PaddingRight = "", "  "
	t.SetStyle(style)
	var header table.Row
	var configs []table.ColumnConfig
	for n, width := range widths(columns, rows, a.Width) {
		c := table.ColumnConfig{Number: n + 1, WidthMax: width, WidthMaxEnforcer: func(s string, max int) string { return text.Snip(s, max, "…") }}
		if columns[n].right {
			c.Align, c.AlignHeader = text.AlignRight, text.AlignRight
		}
		header, configs = append(header, columns[n].title), append(configs, c)
	}
	t.AppendHeader(header)
	t.SetColumnConfigs(configs)
	t.SuppressTrailingSpaces()
	for _, cells := range rows {
		row := make(table.Row, len(cells))
		for n, cell := range cells {
			row[n] = printable(cell)
		}
		t.AppendRow(row)
	}
	fmt.Fprintln(a.out, t.Render())
}

// widths returns how wide the columns are, so that they fit: the widest that may shrink gives way.
func widths(columns []column, rows [][]string, most int) []int {
	widths, total := make([]int, len(columns)), -2
	for n, c := range columns {
		widths[n] = utf8.RuneCountInString(c.title)
		for _, row := range rows {
			widths[n] = max(widths[n], utf8.RuneCountInString(printable(row[n])))
		}
		total += widths[n] + 2
	}
	for ; total > most; total-- {
		widest := -1
		for n, c := range columns {
			if c.shrinks && widths[n] > leastWidth && (widest < 0 || widths[n] > widths[widest]) {
				widest = n
			}
		}
		if widest < 0 {
			break
		}
		widths[widest]--
	}
	return widths
}

// wrap returns the lines of a text, none of which is wider where a space permits that.
func wrap(s string, most int) (lines []string) {
	line := ""
	for word := range strings.FieldsSeq(s) {
		if line != "" && utf8.RuneCountInString(line+" "+word) > most {
			lines, line = append(lines, line), ""
		}
		line = strings.TrimSpace(line + " " + word)
	}
	return append(lines, line)
}

// printable returns a text without what would change a terminal. That includes bytes that are no UTF-8: some terminals
// take 0x9b for the begin of a command.
func printable(s string) string {
	for _, r := range s {
		if !strconv.IsPrint(r) || !utf8.ValidString(s) {
			quoted := strconv.Quote(s)
			return quoted[1 : len(quoted)-1]
		}
	}
	return s
}

// age returns how long ago something was, or how long it takes, in one or two units.
func age(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm%ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%dm", int(d.Hours()), int(d.Minutes())%60)
	default:
		return fmt.Sprintf("%dd%dh", int(d.Hours())/24, int(d.Hours())%24)
	}
}

// since is the age of a time, or a dash for none.
func since(at time.Time) string {
	if at.IsZero() {
		return "-"
	}
	return age(time.Since(at))
}

func size(bytes int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	value, n := float64(bytes), 0
	for value >= 1024 && n < len(units)-1 {
		value, n = value/1024, n+1
	}
	if n == 0 {
		return fmt.Sprintf("%d B", bytes)
	}
	return fmt.Sprintf("%.1f %s", value, units[n])
}

func number[N int | int64](n N) string { return strconv.FormatInt(int64(n), 10) }

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
