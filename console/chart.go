package console

import (
	"fmt"
	"strings"
	"time"
)

// point is a value at a time.
type point struct {
	at    time.Time
	value float64
}

// chart is a line over the time of its points, in the units of its viewBox: 0 to chartWidth from left to right, 0
// to chartHeight from top to bottom.
type chart struct {
	Name    string
	Unit    string
	Now     string
	Highest string
	Span    string // how much time it shows
	Line    string // points of an SVG polyline; empty where there are fewer than two
	Area    string // the path below it
}

const (
	chartWidth  = 600
	chartHeight = 100
	chartTop    = 6 // keeps the highest value inside of the picture
)

// leastSpan is the least time that a chart shows.
const leastSpan = 5 * time.Minute

// newChart draws points, the oldest first.
func newChart(name, unit string, points []point, now time.Time) chart {
	c := chart{Name: name, Unit: unit, Now: "–", Highest: "–", Span: age(leastSpan)}
	if len(points) == 0 {
		return c
	}
	span := max(leastSpan, now.Sub(points[0].at))
	c.Span = age(span.Round(time.Minute))
	x := func(at time.Time) float64 { return chartWidth * min(1, 1-now.Sub(at).Seconds()/span.Seconds()) }
	highest := 0.0
	for _, p := range points {
		highest = max(highest, p.value)
	}
	c.Now, c.Highest = short(points[len(points)-1].value), short(highest)
	if len(points) < 2 {
		return c
	}
	var line strings.Builder
	for i, p := range points {
		if i > 0 {
			line.WriteByte(' ')
		}
		fmt.Fprintf(&line, "%.1f,%.1f", x(p.at), chartY(p.value, highest))
	}
	c.Line = line.String()
	c.Area = fmt.Sprintf("M%.1f,%d L%s L%.1f,%d Z", x(points[0].at), chartHeight, strings.ReplaceAll(c.Line, " ", " L"),
		x(points[len(points)-1].at), chartHeight)
	return c
}

func chartY(value, highest float64) float64 {
	if highest == 0 {
		return chartHeight - 1
	}
	return chartHeight - 1 - (chartHeight-1-chartTop)*value/highest
}

// short writes a number with three or four digits and a unit of thousands.
func short(value float64) string {
	unit := ""
	for _, next := range []string{"k", "M", "G"} {
		if value < 1000 {
			break
		}
		value, unit = value/1000, next
	}
	if value >= 100 || value == float64(int64(value)) {
		return fmt.Sprintf("%.0f%s", value, unit)
	}
	return fmt.Sprintf("%.1f%s", value, unit)
}
