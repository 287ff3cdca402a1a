// Package inspect is for operators: it reads where topics and their consumer groups stand, and acts on them
// while their consumers run.
//
// An [Inspector] lists topics, groups, consumers, pending entries, messages, dead letters by their reasons, and what
// waits: delayed messages, deferred retries, schedules. All reads are bounded by a limit and by their context, none
// keeps Redis busy for long, and none changes anything: they need no permission to write.
//
// Actions have a dry run, which lists what they would change: requeue and purge dead letters, skip a pending entry,
// remove a consumer without losing what is pending for it.
//
// It pauses a group, so that its subscriptions neither read nor deliver, and resumes it. What it
// has done stands in the audit stream of the topic. Consumers of other libraries in the group ignore all of
// it.
//
// [Inspector.RemoveGroup] deletes a group for good, and [Inspector.Trim] removes what no group of a topic needs.
//
// [Inspector.Doctor] looks for settings and states of the Redis servers that lose messages.
package inspect
