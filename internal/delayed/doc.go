// Package delayed stores messages that are appended to a stream later, and moves them there.
//
// Each topic has one hash of stored entries and one sorted set per target with their due times,
// by the clock of the server. An entry is either stored or appended: every script changes both in
// one step. The package has no state and no policy; internal/housekeeper determines when to move.
package delayed
