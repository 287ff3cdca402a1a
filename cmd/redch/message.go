package main

import (
	"fmt"
	"slices"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/inspect"
)

// format is a wire format.
type format struct {
	Format string `short:"f" help:"Wire format: ${enum}." enum:"watermill,flaminco,fields" default:"watermill"`
}

// marshaler is a wire format in both directions.
type marshaler interface {
	redischannels.Marshaler
	redischannels.Unmarshaler
}

func (f format) marshaler() marshaler {
	switch f.Format {
	case "flaminco":
		return redischannels.FlamincoMarshaler{}
	case "fields":
		return redischannels.FieldsMarshaler{}
	}
	return redischannels.WatermillMarshaler{}
}

// messageView is a message as JSON.
type messageView struct {
	ID       string            `json:"id,omitempty"`
	Time     time.Time         `json:"time,omitzero"`
	Bytes    int               `json:"bytes"`
	UUID     string            `json:"uuid,omitempty"`
	Metadata map[string]string `json:"metadata,omitempty"`
	Payload  string            `json:"payload,omitempty"`
	Fields   [][2]string       `json:"fields,omitempty"` // of an entry that cannot be decoded
	Error    string            `json:"error,omitempty"`
}

func viewOf(m inspect.Message) messageView {
	v := messageView{ID: m.ID, Time: m.Time, Bytes: m.Bytes}
	v.set(m.Message, m.Err, m.Fields)
	return v
}

// set sets the message, or what stands in the place of one that cannot be decoded.
func (v *messageView) set(msg *message.Message, err error, fields []redischannels.Field) {
	if err == nil {
		v.UUID, v.Metadata, v.Payload = msg.UUID, msg.Metadata, string(msg.Payload)
		return
	}
	v.Error = err.Error()
	for _, f := range fields {
		v.Fields = append(v.Fields, [2]string{f.Name, string(f.Value)})
	}
}

// print prints a message in full.
func (v messageView) print(a *app) error {
	if a.Output == "json" {
		return a.json(v)
	}
	var rows [][2]string
	if v.ID != "" {
		rows = append(rows, [2]string{"id", v.ID}, [2]string{"time", v.Time.UTC().Format(time.RFC3339Nano)})
	}
	rows = append(rows, [2]string{"bytes", number(v.Bytes)})
	if v.UUID != "" {
		rows = append(rows, [2]string{"uuid", v.UUID})
	}
	for _, key := range slices.Sorted(mapKeys(v.Metadata)) {
		rows = append(rows, [2]string{"metadata", key + " = " + v.Metadata[key]})
	}
	if v.Error != "" {
		rows = append(rows, [2]string{"error", v.Error})
	}
	for _, f := range v.Fields {
		rows = append(rows, [2]string{"field", f[0] + " = " + f[1]})
	}
	for _, row := range rows {
		fmt.Fprintf(a.out, "%-9s %s\n", row[0], printable(row[1]))
	}
	if v.Error == "" {
		fmt.Fprintf(a.out, "payload   %s\n", printable(v.Payload))
	}
	return nil
}

func mapKeys(m map[string]string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for key := range m {
			if !yield(key) {
				return
			}
		}
	}
}

type showCmd struct {
	Topic string `arg:""`
	ID    string `arg:"" help:"Entry ID."`
	format
}

func (showCmd) Help() string { return "Example: redch show orders 1700000000000-0" }

func (c *showCmd) Run(a *app) error {
	ctx, cancel := a.read()
	defer cancel()
	m, err := a.inspector.Message(ctx, c.Topic, c.ID, c.marshaler())
	if err != nil {
		return err
	}
	return viewOf(m).print(a)
}

type tailCmd struct {
	Topic  string `arg:""`
	Last   int    `short:"n" help:"How many of the newest messages to begin with." default:"10"`
	Follow bool   `help:"Continue with those that come." default:"true" negatable:""`
	format
}

func (tailCmd) Help() string {
	return "Example: redch tail orders -n 20 --no-follow\n\nIt joins no group and acknowledges nothing. It looks twice a second."
}

// tailEvery is how often tail looks.
const tailEvery = 500 * time.Millisecond

func (c *tailCmd) Run(a *app) error {
	var newest []inspect.Message
	query := inspect.MessagesQuery{Newest: true, Limit: max(1, c.Last), Unmarshaler: c.marshaler()}
	err := c.each(a, query, func(m inspect.Message) { newest = append(newest, m) })
	if err != nil {
		return err
	}
	slices.Reverse(newest)
	query = inspect.MessagesQuery{Unmarshaler: query.Unmarshaler}
	for _, m := range newest {
		query.After = m.ID
		if c.Last > 0 {
			c.line(a, m)
		}
	}
	for c.Follow && wait(a, tailEvery) {
		err := c.each(a, query, func(m inspect.Message) {
			query.After = m.ID
			c.line(a, m)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *tailCmd) each(a *app, query inspect.MessagesQuery, see func(inspect.Message)) error {
	ctx, cancel := a.read()
	defer cancel()
	for m, err := range a.inspector.Messages(ctx, c.Topic, query) {
		if err != nil {
			return err
		}
		see(m)
	}
	return nil
}

// line prints a message in one line.
func (c *tailCmd) line(a *app, m inspect.Message) {
	v := viewOf(m)
	if a.Output == "json" {
		_ = jsonLine(a, v)
		return
	}
	content := v.Payload
	if v.Error != "" {
		content = "(" + v.Error + ")"
	}
	fmt.Fprintf(a.out, "%s  %s\n", v.ID, cut(printable(content), a.Width-len(v.ID)-2))
}
