package inspect

import (
	"context"
	_ "embed" // the script
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/control"
	"github.com/flaminco/redischannels/internal/redisconn"
)

// Role is the purpose of a Redis user, named as in docs/acl.md.
type Role string

// The roles.
const (
	RolePublisher         Role = "publisher"
	RoleDelayingPublisher Role = "delaying-publisher"
	RoleConsumer          Role = "consumer" // in a group
	RoleReader            Role = "reader"   // without a group
	RoleViewer            Role = "viewer"   // reads of this package
	RoleController        Role = "controller"
	RoleRepairer          Role = "repairer"
)

// rules are those of docs/acl.md, for the topic orders and the group g.
var rules = map[Role]string{
	RolePublisher: "~orders +xadd +multi +exec",
	RoleDelayingPublisher: "~orders ~{orders}:control ~{orders}:delayed ~{orders}:due ~{orders}:mover ~{orders}:dead ~{orders}:schedules " +
		"+xadd +multi +exec +evalsha +eval +type +time +exists +get +set +hget +hset +hincrby +hstrlen +hdel +zadd +zrange +zrangebyscore +zrem",
	RoleConsumer: "~orders ~{orders}:dead ~{orders}:return:g ~{orders}:control ~{orders}:delayed ~{orders}:due ~{orders}:due:g " +
		"~{orders}:mover ~{orders}:mover:g ~{orders}:schedules " +
		"+xgroup|create +xgroup|destroy +xgroup|delconsumer +xlen +xreadgroup +xack +xpending +xclaim +xautoclaim +xrange " +
		"+xinfo|stream +xinfo|groups +xinfo|consumers +exists +evalsha +eval +xadd +xrevrange +xdel +multi +exec +time +type +get +set " +
		"+hget +hset +hlen +hexists +hstrlen +hdel +zadd +zcard +zrange +zrangebyscore +zrem",
	RoleReader: "~orders +xread +xinfo|stream +evalsha +eval",
	RoleViewer: "~orders ~{orders}:* +scan +xinfo|stream +xinfo|groups +xinfo|consumers +xlen +xpending +xrange +xrevrange " +
		"+zcard +zrange +zrank +zcount +hget +hscan +memory|usage +time +evalsha +eval",
	RoleController: "~orders ~{orders}:control ~{orders}:audit +exists +xinfo|groups +xlen +xadd +hget +hset +hdel +time +evalsha +eval",
	RoleRepairer: "~orders ~{orders}:* +exists +xinfo|groups +xinfo|consumers +xinfo|stream +xlen +xpending +xrange +xrevrange " +
		"+xadd +xdel +xack +xclaim +xgroup|delconsumer +hget +hset +time +evalsha +eval",
}

// Roles returns the roles, in the order of their names.
func Roles() []Role { return slices.Sorted(maps.Keys(rules)) }

// Permissions are the ACL permissions of a role on a topic.
type Permissions struct {
	Role Role   `json:"role"`
	Rule string `json:"rule"` // for ACL SETUSER, such as "~orders +xadd +multi +exec"
	// Known is whether the server can say what is missing: Redis from 7.0 on, and Valkey.
	Known bool `json:"known"`
	// Missing are the permissions of the rule that the Redis user of the client lacks, such as "+xack" or "~{orders}:dead".
	Missing []string `json:"missing"`
}

//go:embed lua/permissions.lua
var permissionsLua string

var permissionsScript = redis.NewScript(permissionsLua)

// Permissions returns which ACL permissions a role needs on a topic, and which of them the Redis user of the client
// lacks. The group is that of a consumer, and may be empty for the other roles. It changes nothing, and needs the
// topic to exist as little as the group. The permissions of docs/acl.md for every connection are not in it. (EVAL)
func (i *Inspector) Permissions(ctx context.Context, topic, group string, role Role) (Permissions, error) {
	of, err := i.sideKeys(topic)
	if err != nil {
		return Permissions{}, err
	}
	switch {
	case rules[role] == "":
		return Permissions{}, invalidArgument("role", fmt.Errorf("must be one of %v, got %q", Roles(), role))
	case group == "" && role == RoleConsumer:
		return Permissions{}, invalidArgument("group", errEmpty)
	}
	rule := ruleOf(role, control.Group{Topic: of, Name: group})
	p := Permissions{Role: role, Rule: rule.text()}
	reply, err := permissionsScript.Run(ctx, i.config.Client, nil, rule.arguments()...).Slice()
	if err == nil && len(reply) == 0 {
		err = redisconn.ErrMalformed
	}
	if err != nil {
		return p, readError("permissions on", topic, "", err)
	}
	p.Known = reply[0] == int64(1)
	p.Missing = make([]string, 0, len(reply)-1)
	for _, missing := range reply[1:] {
		p.Missing = append(p.Missing, fmt.Sprint(missing))
	}
	return p, nil
}

// rule is the permissions of a role.
type rule struct {
	patterns []string // of keys
	keys     []string // that the patterns are for
	commands []string
}

// sideNames stand for all keys beside a topic.
var sideNames = []string{"dead", "control", "delayed", "due", "schedules", "audit"}

func ruleOf(role Role, g control.Group) (r rule) {
	for word := range strings.FieldsSeq(rules[role]) {
		if command, ok := strings.CutPrefix(word, "+"); ok {
			r.commands = append(r.commands, command)
			continue
		}
		side, isSide := strings.CutPrefix(word, "~{orders}:")
		kind, ofGroup := strings.CutSuffix(side, ":g")
		switch {
		case !isSide:
			r.add(g.Topic.Name)
		case ofGroup:
			r.add(g.Topic.Base + ":" + kind + ":" + g.Name)
		case side != "*":
			r.add(g.Topic.Base + ":" + side)
		default:
			r.patterns = append(r.patterns, globs.ReplaceAllString(g.Topic.Base, `\$0`)+":*")
			for _, name := range sideNames {
				r.keys = append(r.keys, g.Topic.Base+":"+name)
			}
		}
	}
	return r
}

// globs are the characters that mean something in a pattern.
var globs = regexp.MustCompile(`[*?\[\]\\^]`)

func (r *rule) add(key string) {
	r.patterns = append(r.patterns, globs.ReplaceAllString(key, `\$0`))
	r.keys = append(r.keys, key)
}

func (r *rule) text() string {
	words := make([]string, 0, len(r.patterns)+len(r.commands))
	for _, pattern := range r.patterns {
		words = append(words, "~"+pattern)
	}
	for _, command := range r.commands {
		words = append(words, "+"+command)
	}
	return strings.Join(words, " ")
}

func (r *rule) arguments() []any {
	args := []any{len(r.commands)}
	for _, word := range slices.Concat(r.commands, r.keys) {
		args = append(args, word)
	}
	return args
}

// lacks reports whether one of the permissions is missing.
func (p Permissions) lacks(permission string) bool { return slices.Contains(p.Missing, permission) }
