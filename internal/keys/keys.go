// Package keys is the only place that names the keys that belong to a topic beside its stream.
package keys

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/flaminco/redischannels/internal/redisconn"
)

// ErrNoBase is the error of a topic of which no side key can be made.
var ErrNoBase = errors.New("has a } and no valid hash tag, so no name around it shares its hash slot: SideKeys must be set")

// Base returns what the names of a topic's side keys begin with: the topic if it has a valid hash
// tag, otherwise `{topic}`. Both share its hash slot.
func Base(topic string) (string, error) {
	if _, ok := redisconn.HashTag(topic); ok {
		return topic, nil
	}
	if strings.Contains(topic, "}") {
		return "", ErrNoBase
	}
	return "{" + topic + "}", nil
}

// Of returns the keys of a topic, whose base is the one that sideKeys returns or, where it is
// nil, that of [Base]. With a cluster all keys must lie in the hash slot of the topic.
func Of(topic string, sideKeys func(topic string) string, cluster bool) (Topic, error) {
	if sideKeys == nil {
		base, err := Base(topic)
		return Topic{Name: topic, Base: base}, err
	}
	t := Topic{Name: topic, Base: sideKeys(topic)}
	switch _, tagged := redisconn.HashTag(t.Base); {
	case t.Base == "":
		return Topic{}, errors.New("SideKeys must not return an empty name")
	case cluster && (!tagged || redisconn.Slot(t.Base) != redisconn.Slot(topic)):
		return Topic{}, fmt.Errorf("SideKeys returned %q, which is in another hash slot than the topic, or has no hash tag", t.Base)
	}
	return t, nil
}

// IsSide reports whether a stream lies beside a topic, or is that of a run (package sse). A topic whose name has
// a hash tag and behind it the form of a side key is taken for one.
func IsSide(key string) bool {
	tag, ok := redisconn.HashTag(key)
	if !ok {
		return false
	}
	_, rest, _ := strings.Cut(key, "{"+tag+"}")
	return strings.HasSuffix(rest, ":dead") || strings.HasSuffix(rest, ":audit") || strings.Contains(rest, ":return:") ||
		strings.HasPrefix(rest, ":events:") && runBucket.MatchString(tag)
}

// runBucket is the hash tag of a bucket of runs.
var runBucket = regexp.MustCompile(`:[0-9]+$`)

// Topic is a topic with the base of its side keys.
type Topic struct {
	Name string // also the key of the stream
	Base string
}

// Dead is the stream of dead letters.
func (t Topic) Dead() string { return t.Base + ":dead" }

// Control is the hash with what is true of the topic as a whole: its name, its retention.
func (t Topic) Control() string { return t.Base + ":control" }

// Delayed is the hash of all stored entries that wait to be appended, by ID.
func (t Topic) Delayed() string { return t.Base + ":delayed" }

// Due is the sorted set of when the entries for the topic, or with a group those for its return
// stream, are due: milliseconds of the server's clock by ID.
func (t Topic) Due(group string) string { return t.ofGroup("due", group) }

// Return is the stream of what comes back to a group only.
func (t Topic) Return(group string) string { return t.ofGroup("return", group) }

// Mover is the key of the housekeeper that moves what is due in the due set of the same group.
func (t Topic) Mover(group string) string { return t.ofGroup("mover", group) }

// Schedules is the hash of recurring schedules.
func (t Topic) Schedules() string { return t.Base + ":schedules" }

// Audit is the stream of what operators have done.
func (t Topic) Audit() string { return t.Base + ":audit" }

func (t Topic) ofGroup(kind, group string) string {
	if group == "" {
		return t.Base + ":" + kind
	}
	return t.Base + ":" + kind + ":" + group
}
