// Command benchmarks measures redischannels against watermill-redisstream and against
// go-redis and rueidis without a library, in one run on one redis-server that it starts
// itself.
//
// Without flags it runs the main rows, which take about six minutes. The wider rows have names of
// the form group/value: sizes, publishers, subscriptions, handlers, fanout, latency, growing
// and watermill-benchmark. -run '^sizes/' runs a group, -all everything.
//
// Only ratios mean something: the repetitions of all peers of a row are interleaved, so
// that whatever the machine does meanwhile it does to each of them. A figure counts only
// when every message has arrived exactly once and nothing is pending in the group
// afterwards; otherwise the run fails.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"syscall"

	"github.com/flaminco/redischannels/benchmarks/internal/local"
)

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	slog.SetLogLoggerLevel(slog.LevelWarn) // 100 subscriptions would write 100 lines
	if err := benchmark(ctx); err != nil {
		cancel()
		fmt.Fprintln(os.Stderr, "benchmarks:", err)
		os.Exit(1)
	}
}

func benchmark(ctx context.Context) error {
	n := flag.Int("n", 5, "`repetitions` of each row")
	pattern := flag.String("run", "", "run the rows whose names match this `regexp`: main rows, and those of the groups\n"+
		"sizes/ publishers/ subscriptions/ handlers/ fanout/ latency/ growing/ watermill-benchmark/")
	everything := flag.Bool("all", false, "run the main rows and all groups, which takes half an hour or more")
	huge := flag.Bool("huge", false, "let a row of growing/ have 10,000,000 entries as well, which takes memory")
	peers := flag.String("peer", "", "run only peers whose names match this `regexp`, whose ratios are then of the first that is left")
	quick := flag.Bool("quick", false, "a tenth of the messages: to see that it works, not to compare")
	file := flag.String("json", "", "write the results to this `file` as well")
	svg := flag.String("svg", "", "write a chart of the main rows to this `file`")
	profiles := flag.String("profiles", "", "write a CPU profile of every repetition into this `directory`")
	flag.Parse()
	match, err := regexp.Compile(*pattern)
	if err != nil {
		return fmt.Errorf("-run: %w", err)
	}
	matchPeer, err := regexp.Compile(*peers)
	if err != nil {
		return fmt.Errorf("-peer: %w", err)
	}
	if *n < 1 || flag.NArg() > 0 {
		return fmt.Errorf("-n must be at least 1, and there are no arguments beside the flags")
	}

	s, err := local.StartRedis(ctx)
	if err != nil {
		return err
	}
	defer s.Stop()
	h := &harness{server: s, repetitions: *n, scale: 1, profiles: *profiles, progress: func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, format+"\n", args...)
	}}
	if *quick {
		h.scale = 10
	}
	rep := report{Environment: newEnvironment(s)}
	for _, r := range chosen(match, *everything, *huge) {
		r.peers = slices.DeleteFunc(r.peers, func(p peer) bool { return !matchPeer.MatchString(p.name) })
		if len(r.peers) == 0 {
			continue
		}
		results, err := h.run(ctx, r)
		if err != nil {
			return err
		}
		rep.Results = append(rep.Results, results...)
	}
	if len(rep.Results) == 0 {
		return fmt.Errorf("no row has this name, or none has this peer")
	}
	if err := rep.text(os.Stdout); err != nil {
		return err
	}
	if *file != "" {
		err = rep.writeJSON(*file)
	}
	if *svg != "" {
		err = errors.Join(err, rep.writeChart(*svg))
	}
	return err
}

// chosen are the main rows that match, and the wider ones if they are asked for.
func chosen(match *regexp.Regexp, everything, huge bool) []row {
	all := rows()
	if everything || match.String() != "" {
		all = append(all, sweeps(huge)...)
	}
	return slices.DeleteFunc(all, func(r row) bool { return !match.MatchString(r.name) })
}
