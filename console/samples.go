package console

import (
	"context"
	"sync"
	"time"

	"github.com/flaminco/redischannels/inspect"
)

const (
	// sampleEvery is the time between two samples.
	sampleEvery = 10 * time.Second
	// sampleFor is how long samples are taken after a page was looked at, and how long they are kept.
	sampleFor = time.Hour
	// maxGroups and maxTopics bound what is sampled: a page that is open must not read a whole server.
	maxGroups = 200
	maxTopics = 100
)

// groupKey identifies a consumer group of a topic.
type groupKey struct{ topic, group string }

// sample is the state of a group at a time.
type sample struct {
	at    time.Time
	lag   int64
	rate  inspect.Rate
	known bool // rate is
}

// sampler samples all groups, for as long as pages are looked at. One goroutine belongs to it, which ends with its
// Console.
type sampler struct {
	mu      sync.Mutex
	until   time.Time // when sampling ends
	running bool
	groups  map[string][]inspect.Group // the last look, by topic
	series  map[groupKey][]sample
}

// used begins or prolongs the sampling.
func (s *sampler) used(c *Console) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.until = time.Now().Add(sampleFor)
	if !s.running {
		s.running = true
		c.life.Go(func() { s.run(c) })
	}
}

// run is the goroutine of the sampler.
func (s *sampler) run(c *Console) {
	inspector, err := inspect.New(c.config.Inspect, c.logger)
	if err != nil {
		return // New has checked the configuration
	}
	ticker := time.NewTicker(sampleEvery)
	defer ticker.Stop()
	for s.goOn() {
		s.look(c.life.Context(), inspector)
		select {
		case <-ticker.C:
		case <-c.life.Context().Done():
			return
		}
	}
}

func (s *sampler) goOn() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running = time.Now().Before(s.until)
	return s.running
}

// look samples every group. Where Redis does not answer, the samples have a gap: pages show the error themselves.
func (s *sampler) look(ctx context.Context, inspector *inspect.Inspector) {
	ctx, cancel := context.WithTimeout(ctx, sampleEvery)
	defer cancel()
	left := maxGroups
	groups := make(map[string][]inspect.Group)
	for topic, err := range inspector.Topics(ctx, inspect.TopicsQuery{Limit: maxTopics}) {
		if err != nil {
			return
		}
		for group, err := range inspector.Groups(ctx, topic.Name) {
			if err != nil || left == 0 {
				break // the topic was deleted meanwhile
			}
			left--
			groups[topic.Name] = append(groups[topic.Name], group)
		}
	}
	s.add(groups)
}

// add takes a look at all groups. Groups that it does not have are forgotten.
func (s *sampler) add(groups map[string][]inspect.Group) {
	s.mu.Lock()
	defer s.mu.Unlock()
	series := make(map[groupKey][]sample)
	for topic, of := range groups {
		for _, g := range of {
			key, now := groupKey{topic, g.Name}, sample{at: g.At, lag: g.Lag.AtLeast}
			now.rate, now.known = g.Since(s.before(key))
			series[key] = append(fresh(s.series[key], g.At), now)
		}
	}
	s.groups, s.series = groups, series
}

// before returns the last look at a group.
func (s *sampler) before(key groupKey) inspect.Group {
	for _, g := range s.groups[key.topic] {
		if g.Name == key.group {
			return g
		}
	}
	return inspect.Group{}
}

// fresh returns the samples that are not older than sampleFor.
func fresh(all []sample, now time.Time) []sample {
	for len(all) > 0 && now.Sub(all[0].at) > sampleFor {
		all = all[1:]
	}
	return all
}

// ofTopic returns the last look at the groups of a topic.
func (s *sampler) ofTopic(topic string) []inspect.Group {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.groups[topic]
}

// ofGroup returns the samples of a group, the oldest first.
func (s *sampler) ofGroup(key groupKey) []sample {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]sample(nil), s.series[key]...)
}

// points returns a value of the samples that have it.
func points(all []sample, value func(sample) (float64, bool)) []point {
	var found []point
	for _, s := range all {
		if v, ok := value(s); ok {
			found = append(found, point{s.at, v})
		}
	}
	return found
}

// chartsOf draws the samples of a group.
func chartsOf(all []sample, now time.Time) []chart {
	return []chart{
		newChart("Lag", "entries", points(all, func(s sample) (float64, bool) { return float64(s.lag), true }), now),
		newChart("Appended", "per second", points(all, func(s sample) (float64, bool) { return s.rate.Appended, s.known }), now),
		newChart("Finished", "per second", points(all, func(s sample) (float64, bool) { return s.rate.Finished, s.known }), now),
	}
}
