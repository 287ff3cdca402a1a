package stream

import (
	"context"
	_ "embed" // the script

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/redisconn"
)

// BehindLua stands before the scripts that ask where a group stands.
//
//go:embed lua/behind.lua
var BehindLua string

//go:embed lua/lag.lua
var lagSource string

var lagScript = redis.NewScript(BehindLua + lagSource)

// lagPage is the number of entries that one script counts: Redis reads them completely.
const lagPage = 200

// Lag is the number of entries that a group has not read.
type Lag struct {
	Lag, Pending, Consumers int64
	LastDelivered           string
	More                    bool // Lag is not all
}

// Lag counts the entries that were not yet delivered to the group, until there are at least `most` of them.
// Where that is not all More is true. It runs one command for every 200 entries, and one at least.
// (XINFO GROUPS, XGROUP CREATE, XGROUP DESTROY, XRANGE)
func (g *Group) Lag(ctx context.Context, most int64) (Lag, error) {
	found, from, err := g.lag(ctx, "")
	for from != "" && found.Lag < most && err == nil { // what is delivered meanwhile has been counted
		var more Lag
		if more, from, err = g.lag(ctx, from); err == nil {
			found.Lag, found.Pending, found.Consumers = found.Lag+more.Lag, more.Pending, more.Consumers
		}
	}
	found.More = from != ""
	return found, err
}

// lag runs the script once. from is empty or what the call before has returned.
func (g *Group) lag(ctx context.Context, from string) (found Lag, next string, err error) {
	reply, err := runScript(ctx, g.Client, lagScript, []string{g.Key}, g.Name, from, lagPage).Slice()
	if err != nil {
		return Lag{}, "", err
	}
	if len(reply) != 5 {
		return Lag{}, "", redisconn.ErrMalformed
	}
	found.Pending, found.Consumers, found.Lag = toInt(reply[0]), toInt(reply[1]), toInt(reply[3])
	found.LastDelivered, _ = reply[2].(string)
	next, _ = reply[4].(string)
	return found, next, nil
}
