// Package delayed stores messages that are appended to a stream later, and moves them there.
//
// Per topic there is one hash of stored entries and one sorted set per target of when they are
// due, by the clock of the server. An entry is stored or appended: every script does both in
// one step. It has no state and no policy; internal/housekeeper decides when to move.
package delayed
