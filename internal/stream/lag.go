package stream

import (
	"context"
	_ "embed" // the script

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/redisconn"
)

//go:embed lua/behind.lua
var behindSource string

//go:embed lua/lag.lua
var lagSource string

var lagScript = redis.NewScript(behindSource + lagSource)

// lagPage is how many entries one script counts: Redis reads them whole.
const lagPage = 200

// Lag is what a group has before it.
type Lag struct {
	Lag, Pending, Consumers int64
	LastDelivered           string
}

// Lag counts the entries that were not yet delivered to the group.
// (XINFO GROUPS, XGROUP CREATE, XGROUP DESTROY, XRANGE)
func (g *Group) Lag(ctx context.Context) (Lag, error) {
	var found Lag
	for from := ""; ; {
		reply, err := lagScript.Run(ctx, g.Client, []string{g.Key}, g.Name, from, lagPage).Slice()
		if err != nil {
			return Lag{}, err
		}
		if len(reply) != 5 {
			return Lag{}, redisconn.ErrMalformed
		}
		found.Pending, found.Consumers = toInt(reply[0]), toInt(reply[1])
		if from == "" { // what is delivered meanwhile has been counted
			found.LastDelivered, _ = reply[2].(string)
		}
		found.Lag += toInt(reply[3])
		if from, _ = reply[4].(string); from == "" {
			return found, nil
		}
	}
}
