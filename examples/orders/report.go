package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/flaminco/redischannels"
)

// listed is how many dead letters the report shows.
const listed = 30

// report lists the dead letters and ends with the summary. It fails when the numbers do not
// add up.
func (imp *importer) report(ctx context.Context, desk *desk) error {
	handled, err := desk.books.count(ctx)
	if err != nil {
		return err
	}
	totals, err := desk.books.totals(ctx)
	if err != nil {
		return err
	}
	dead, err := imp.deadLetters(ctx)
	if err != nil {
		return err
	}

	p := imp.out.printf
	p("")
	p("Summary")
	p("  rows read      %8d", imp.in.rows)
	p("  handled        %8d", handled)
	p("  dead-lettered  %8d", dead)
	p("")
	p("  currency  orders           amount")
	var orders int64
	for _, currency := range slices.Sorted(maps.Keys(totals)) {
		t := totals[currency]
		orders += t.orders
		p("  %-8s  %6d  %15s", currency, t.orders, formatAmount(t.amount, currency))
	}
	p("")
	p("  in this run: %d deliveries, %d retries, %d duplicates that changed nothing",
		desk.deliveries.Load(), desk.retries(), desk.duplicates.Load())
	p("")
	switch {
	case handled+dead != imp.in.rows:
		return fmt.Errorf("does not add up: %d handled + %d dead-lettered, but %d rows", handled, dead, imp.in.rows)
	case orders != int64(handled):
		return fmt.Errorf("does not add up: %d orders by currency, but %d handled", orders, handled)
	}
	p("It adds up: %d handled + %d dead-lettered = %d rows", handled, dead, imp.in.rows)
	return nil
}

// deadLetters lists the dead letters and returns of how many rows they are.
func (imp *importer) deadLetters(ctx context.Context) (int, error) {
	letters, err := redischannels.NewDeadLetters(redischannels.DeadLettersConfig{Client: imp.client}, imp.logger)
	if err != nil {
		return 0, err
	}
	name, err := redischannels.DefaultDeadLetterTopic(imp.names.topic)
	if err != nil {
		return 0, err
	}
	imp.out.printf("")
	imp.out.printf("Dead letters in the stream %s", name)
	lines := make(map[int]bool)
	shown := 0
	for letter, err := range letters.List(ctx, imp.names.topic, redischannels.DeadLetterQuery{Group: group}) {
		if err != nil {
			return 0, err
		}
		msg, err := redischannels.WatermillMarshaler{}.Unmarshal(letter.Entry())
		if err != nil {
			return 0, err
		}
		line, err := strconv.Atoi(msg.Metadata.Get(lineKey))
		if err != nil {
			return 0, fmt.Errorf("dead letter %s is not from this import", letter.ID)
		}
		note := ""
		switch done, err := imp.handledFrom(ctx, string(msg.Payload), line); {
		case err != nil:
			return 0, err
		case done:
			// The last delivery crashed after the order was entered: nothing is lost.
			note = " (but the order was handled)"
		case lines[line]:
			note = " (again)"
		default:
			lines[line] = true
		}
		if shown++; shown == 1 {
			imp.out.printf("  %6s  %10s  reason", "line", "deliveries")
		}
		if shown <= listed {
			imp.out.printf("  %6d  %10d  %s%s", line, letter.Count, letter.Reason, note)
			imp.out.printf("  %6s  %10s    %s", "", "", shorten(string(msg.Payload), 76))
		}
	}
	switch {
	case shown == 0:
		imp.out.printf("  none")
	case shown > listed:
		imp.out.printf("  and %d more", shown-listed)
	}
	return len(lines), nil
}

// handledFrom reports whether the order of a row was entered from that line.
func (imp *importer) handledFrom(ctx context.Context, text string, line int) (bool, error) {
	o, err := parseOrder(text)
	if err != nil {
		return false, nil
	}
	from, err := books{imp.client, imp.names}.line(ctx, o.id)
	return from == line, err
}

// screen writes lines, and below them on a terminal one that shows the progress. Elsewhere
// the progress is a line now and then. It is safe for concurrent use.
type screen struct {
	mu       sync.Mutex
	out      io.Writer
	terminal bool
	current  string // progress that is shown, or is to be
	printed  string // progress that was printed as a line
	last     time.Time
}

const clearLine = "\r\x1b[K"

func newScreen(out io.Writer) *screen {
	s := &screen{out: out}
	if file, ok := out.(*os.File); ok {
		if info, err := file.Stat(); err == nil {
			s.terminal = info.Mode()&os.ModeCharDevice != 0 && os.Getenv("TERM") != "dumb"
		}
	}
	return s
}

// printf writes a line.
func (s *screen) printf(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	text := strings.TrimRight(fmt.Sprintf(format, args...), " \n")
	if s.terminal && s.current != "" {
		fmt.Fprint(s.out, clearLine, text, "\n", s.current)
		return
	}
	fmt.Fprintln(s.out, text)
}

// progress replaces the last progress.
func (s *screen) progress(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.current = text
	switch {
	case s.terminal:
		fmt.Fprint(s.out, clearLine, text)
	case text != s.printed && time.Since(s.last) >= time.Second:
		fmt.Fprintln(s.out, text)
		s.printed, s.last = text, time.Now()
	}
}

// finish leaves the last progress as a line.
func (s *screen) finish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.current == "":
	case s.terminal:
		fmt.Fprintln(s.out)
	case s.current != s.printed:
		fmt.Fprintln(s.out, s.current)
	}
	s.current, s.printed = "", ""
}
