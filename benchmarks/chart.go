package main

import (
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/template"
)

// chartRows are the rows of the chart, all of messages per second.
var chartRows = []string{"subscribe", "publish-64x1", "publish-1x100", "router"}

//go:embed chart.svg.tmpl
var chartText string

var chartTemplate = template.Must(template.New("chart").Parse(chartText))

const (
	chartLeft    = 8
	chartLabels  = 150 // of the peers
	chartBars    = 400 // of the greatest value
	chartFigures = 90
	chartBar     = 14
)

// chart is the data of the template. Places are in pixels.
type chart struct {
	Width, Height, Bars int
	Headings            []chartHeading
	Lines               []chartLine
	Note                string
	NoteY               int
}

type chartHeading struct {
	Text string
	Y    int
}

type chartLine struct {
	Class, Peer, Value string
	Y, Width           int
}

// chartPeer is how a peer is called in the chart, and its class of style.
func chartPeer(name string) (label, class string) {
	for i, known := range []string{ours.name, redisStream.name, bare, bareRueidis} {
		if name == known || strings.HasPrefix(name, known+" ") {
			return known, fmt.Sprintf("p%d", i)
		}
	}
	return name, "p2"
}

// newChart draws the medians of those rows of the report that belong into the chart.
func (r report) newChart() (chart, error) {
	c := chart{Bars: chartLeft + chartLabels, Width: chartLeft + chartLabels + chartBars + chartFigures}
	var shown []result
	greatest := 0.0
	for _, name := range chartRows {
		i := slices.IndexFunc(r.Results, func(res result) bool { return res.Row == name })
		if i < 0 {
			continue
		}
		shown = append(shown, r.Results[i])
		for _, p := range r.Results[i].Peers {
			greatest = max(greatest, median(p.Values))
		}
	}
	if len(shown) == 0 {
		return c, fmt.Errorf("a chart needs one of the rows %s", strings.Join(chartRows, ", "))
	}
	y := 0
	for _, res := range shown {
		y += 22
		c.Headings = append(c.Headings, chartHeading{res.Row, y})
		y += 8
		for _, p := range res.Peers {
			value := median(p.Values)
			label, class := chartPeer(p.Name)
			c.Lines = append(c.Lines, chartLine{class, label, decimal(value), y, max(1, int(value/greatest*chartBars))})
			y += chartBar + 4
		}
	}
	c.NoteY = y + 18
	c.Height = y + 28
	e := r.Environment
	c.Note = fmt.Sprintf("messages per second; medians of %d; payloads of %d bytes; redis %s, %s, GOMAXPROCS %d",
		shown[0].Repetitions, e.Payload, e.Redis, e.Go, e.GOMAXPROCS)
	return c, nil
}

// writeChart writes the chart to a file.
func (r report) writeChart(file string) error {
	c, err := r.newChart()
	if err != nil {
		return err
	}
	var text strings.Builder
	if err := chartTemplate.Execute(&text, c); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return os.WriteFile(file, []byte(text.String()), 0o644)
}
