// Package inspect is for operators: it acts on the consumer groups of topics while their consumers run.
//
// An [Inspector] pauses a group, so that its subscriptions neither read nor deliver, and resumes it. What it
// has done stands in the audit stream of the topic. Consumers of other libraries in the group ignore all of
// it.
//
// [Inspector.Doctor] looks for settings and states of the Redis servers that lose messages.
package inspect
