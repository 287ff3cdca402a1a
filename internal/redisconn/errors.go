package redisconn

import (
	"context"
	"errors"
	"strings"

	"github.com/redis/go-redis/v9"
)

// Kind is the kind of an error reply of Redis, or of a missing reply.
type Kind uint8

// The kinds of errors.
const (
	// KindOther is an error reply that no other kind covers.
	KindOther Kind = iota
	// KindNetwork is a missing reply: refused, disconnected, timed out. A command that was sent
	// may have been executed.
	KindNetwork
	// KindCanceled is the caller's own context.
	KindCanceled
	// KindUnavailable is a server that cannot serve now and will later: LOADING, READONLY,
	// MASTERDOWN, CLUSTERDOWN, TRYAGAIN, MOVED, ASK, BUSY, NOREPLICAS and a blocked call that
	// ended with a role change.
	KindUnavailable
	// KindNoGroup is a consumer group or a stream that does not exist, or no longer exists.
	KindNoGroup
	// KindWrongType is a key that is not a stream.
	KindWrongType
	// KindNoPerm is a command or a key for which the user has no permission.
	KindNoPerm
	// KindOOM is a write that the server refused because it is out of memory.
	KindOOM
	// KindBusyGroup is a group that already exists.
	KindBusyGroup
	// KindNoScript is a script that the server does not have, or no longer has.
	KindNoScript
	// KindUnknownCommand is a command that the server does not know.
	KindUnknownCommand
	// KindProtocol is a command that the server could not parse, for example because an argument
	// exceeds its proto-max-bulk-len. The server closes the connection.
	KindProtocol
	// KindTopicCollision is the reply of a script of this library that has found the keys of
	// another topic.
	KindTopicCollision
	// KindSought is the reply of such a script to a consumer that is older than a seek of its group.
	KindSought
)

// replyKinds maps the beginning of an error reply to its kind. The texts are
// those of Redis 6.2 to 8 and of Valkey; only the prefix is stable.
var replyKinds = []struct {
	prefix string
	kind   Kind
}{
	{"NOGROUP", KindNoGroup},
	{"UNBLOCKED the stream key no longer exists", KindNoGroup},
	{"UNBLOCKED force unblock", KindUnavailable},
	{"UNBLOCKED", KindUnavailable},
	{"ERR no such key", KindNoGroup},
	{"WRONGTYPE", KindWrongType},
	{"NOPERM", KindNoPerm},
	{"ERR ACL failure in script", KindNoPerm}, // Valkey 8
	{"NOAUTH", KindNoPerm},
	{"WRONGPASS", KindNoPerm},
	{"OOM", KindOOM},
	{"BUSYGROUP", KindBusyGroup},
	{"NOSCRIPT", KindNoScript},
	{"ERR unknown command", KindUnknownCommand},
	{"ERR unknown subcommand", KindUnknownCommand},
	{"ERR Unknown Redis command", KindUnknownCommand}, // in a script
	{"ERR Unknown command", KindUnknownCommand},       // in a script of Valkey
	{"ERR Unknown subcommand", KindUnknownCommand},
	{"ERR Protocol error", KindProtocol},
	{"TOPICCOLLISION", KindTopicCollision},
	{"SOUGHT", KindSought},
	{"LOADING", KindUnavailable},
	{"READONLY", KindUnavailable},
	{"MASTERDOWN", KindUnavailable},
	{"CLUSTERDOWN", KindUnavailable},
	{"TRYAGAIN", KindUnavailable},
	{"MOVED", KindUnavailable},
	{"ASK", KindUnavailable},
	{"BUSY ", KindUnavailable},
	{"NOREPLICAS", KindUnavailable},
	{"MISCONF", KindUnavailable},
	{"EXECABORT", KindOther},
}

// Classify returns the kind of an error. It is the only place where the texts of error
// replies are compared.
func Classify(err error) Kind {
	switch {
	case err == nil:
		return KindOther
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return KindCanceled
	}
	var reply redis.Error
	if !errors.As(err, &reply) {
		return KindNetwork
	}
	text := reply.Error()
	// A missing permission inside a transaction is in the reply to EXEC:
	// `EXECABORT Transaction discarded because of: NOPERM ...`.
	if _, cause, ok := strings.Cut(text, "EXECABORT Transaction discarded because of: "); ok {
		text = cause
	}
	for _, r := range replyKinds {
		if strings.HasPrefix(text, r.prefix) {
			return r.kind
		}
	}
	// An error inside a script may keep its code but not at the beginning: before Redis 7
	// as `@user_script: 7: -OOM ...` or `ERR Error running script (...): @user_script:7:
	// WRONGTYPE ...`, and a missing permission as `ERR The user executing the script can't
	// run this command`.
	if strings.Contains(text, "user executing the script") || strings.Contains(text, "can't run this command") ||
		strings.Contains(text, "can't access at least one of the keys") {
		return KindNoPerm
	}
	if _, inner, ok := strings.Cut(text, "@user_script"); ok {
		for _, r := range replyKinds {
			if strings.Contains(inner, ": "+r.prefix) || strings.Contains(inner, ": -"+r.prefix) {
				return r.kind
			}
		}
		if strings.Contains(inner, "Unknown Redis command") {
			return KindUnknownCommand
		}
	}
	return KindOther
}

// IsReply reports whether the error is an error reply of Redis.
func IsReply(err error) bool {
	var reply redis.Error
	return errors.As(err, &reply)
}

// ReplyError is an error reply that the library has read itself. It implements redis.Error, so
// Classify recognizes it.
type ReplyError string

// Error implements error.
func (e ReplyError) Error() string { return string(e) }

// RedisError implements redis.Error.
func (ReplyError) RedisError() {}

// Retryable reports whether a later retry can succeed.
func (k Kind) Retryable() bool {
	return k == KindNetwork || k == KindUnavailable || k == KindOOM
}
