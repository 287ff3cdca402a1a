package inspect

import (
	"context"
	"iter"
	"time"

	"github.com/flaminco/redischannels/internal/stream"
)

// AuditLine is what an operator has done.
type AuditLine struct {
	ID     string    `json:"id"`
	Time   time.Time `json:"time"` // by the clock of the Redis server
	Who    string    `json:"who"`  // Config.Actor
	Action string    `json:"action"`
	Group  string    `json:"group,omitempty"`
	// Details are the options of the action, and how much it has changed.
	Details map[string]string `json:"details,omitempty"`
}

// Audit yields up to limit lines of the audit stream of a topic, newest first; 0 is DefaultLimit. The stream keeps
// about 10,000. An error ends the loop. (XREVRANGE)
func (i *Inspector) Audit(ctx context.Context, topic string, limit int) iter.Seq2[AuditLine, error] {
	return func(yield func(AuditLine, error) bool) {
		of, err := i.sideKeys(topic)
		if err == nil {
			limit, err = checkLimit("limit", limit, DefaultLimit)
		}
		if err == nil {
			err = readError("audit of", topic, "", entries(ctx, i.config.Client, of.Audit(), "-", "+", true, limit, func(e stream.RangeEntry) (bool, error) {
				line, err := newAuditLine(e)
				return err == nil && yield(line, nil), err
			}))
		}
		if err != nil {
			yield(AuditLine{}, err)
		}
	}
}

func newAuditLine(e stream.RangeEntry) (line AuditLine, err error) {
	id, err := stream.ParseID(e.ID)
	if err != nil {
		return line, err
	}
	line = AuditLine{ID: e.ID, Time: timeOf(id), Details: make(map[string]string)}
	known := map[string]*string{"who": &line.Who, "action": &line.Action, "group": &line.Group}
	for n := 0; n < len(e.Values); n += 2 {
		if to := known[e.Values[n]]; to != nil {
			*to = e.Values[n+1]
		} else {
			line.Details[e.Values[n]] = e.Values[n+1]
		}
	}
	return line, nil
}
