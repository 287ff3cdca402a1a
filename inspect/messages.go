package inspect

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/internal/stream"
)

// ErrNoEntry means that the stream has no entry of that ID, or not any more.
var ErrNoEntry = errors.New("no such entry")

// MessagesQuery says which entries of a topic [Inspector.Messages] yields. The zero value asks for all, oldest first.
type MessagesQuery struct {
	After  string // an entry ID: only entries behind it; empty for no bound
	Before string // an entry ID: only entries before it; empty for no bound
	Newest bool   // newest first
	Limit  int    // greatest number of entries, 0 for DefaultLimit

	// Unmarshaler makes a message of each entry: that of the consumers. Defaults to WatermillMarshaler.
	Unmarshaler redischannels.Unmarshaler
}

// Message is an entry of a topic, and the message that it is.
type Message struct {
	redischannels.Entry                  // as it is in Redis
	Time                time.Time        // when it was appended, by its ID
	Bytes               int              // of all names and values
	Message             *message.Message // nil if it cannot be decoded
	Err                 error            // why: a *[redischannels.DecodeError]
}

// A page has up to this many entries, as long as they are small.
const (
	pageFirst = 16
	pageMost  = 256
	pageBytes = 1 << 20
)

// Messages yields entries of a topic. They are read in pages: of up to 16 entries at first and then, as far as the
// sizes seen so far show, of about 1 MiB. Oldest first it ends with the entry that is the newest when the loop
// begins. An error ends the loop. (XRANGE, XREVRANGE)
func (i *Inspector) Messages(ctx context.Context, topic string, query MessagesQuery) iter.Seq2[Message, error] {
	return func(yield func(Message, error) bool) {
		if err := i.messages(ctx, topic, query, func(m Message) bool { return yield(m, nil) }); err != nil {
			yield(Message{}, err)
		}
	}
}

func (i *Inspector) messages(ctx context.Context, topic string, query MessagesQuery, yield func(Message) bool) error {
	limit, err := checkLimit("MessagesQuery.Limit", query.Limit, DefaultLimit)
	if err != nil {
		return err
	}
	from, to := "-", "+"
	for _, bound := range []struct {
		field, id string
		to        *string
	}{{"After", query.After, &from}, {"Before", query.Before, &to}} {
		if bound.id == "" {
			continue
		}
		id, err := parseID("MessagesQuery."+bound.field, bound.id)
		if err != nil {
			return err
		}
		*bound.to = "(" + id.String()
	}
	if topic == "" {
		return invalidArgument("topic", errEmpty)
	}
	if to == "+" && !query.Newest { // what is appended meanwhile is not yielded, so that the loop ends
		last, err := stream.LastEntryID(ctx, i.config.Client, topic)
		if err != nil || last == "" {
			return readError("messages", topic, "", err)
		}
		to = last
	}
	err = entries(ctx, i.config.Client, topic, from, to, query.Newest, limit, func(e stream.RangeEntry) (bool, error) {
		m, err := newMessage(topic, e, query.Unmarshaler)
		return err == nil && yield(m), err
	})
	return readError("messages", topic, "", err)
}

// entries calls see with up to limit entries of a stream, until it returns false.
func entries(ctx context.Context, client redis.UniversalClient, key, from, to string, newest bool, limit int, see func(stream.RangeEntry) (bool, error)) error {
	for count := pageFirst; ; {
		count = min(count, limit)
		command, first, last, next := "XRANGE", from, to, &from
		if newest {
			command, first, last, next = "XREVRANGE", to, from, &to
		}
		page, err := stream.ReadRange(ctx, client, command, key, first, last, count)
		if err != nil {
			return err
		}
		largest := 1
		for _, e := range page {
			largest = max(largest, e.Size)
			if more, err := see(e); !more || err != nil {
				return err
			}
		}
		if limit -= len(page); len(page) < count || limit == 0 {
			return nil
		}
		*next = "(" + page[len(page)-1].ID
		count = max(1, min(pageBytes/largest, 2*count, pageMost))
	}
}

func newMessage(topic string, e stream.RangeEntry, unmarshaler redischannels.Unmarshaler) (m Message, err error) {
	id, err := stream.ParseID(e.ID)
	if err != nil {
		return m, err
	}
	m = Message{Entry: redischannels.Entry{Topic: topic, ID: e.ID, Fields: fieldsOf(e.Values)}, Time: timeOf(id), Bytes: e.Size}
	m.Message, m.Err = m.Entry.Message(unmarshaler)
	return m, nil
}

func fieldsOf(values []string) []redischannels.Field {
	fields := make([]redischannels.Field, 0, len(values)/2)
	for i := 0; i < len(values); i += 2 {
		fields = append(fields, redischannels.Field{Name: values[i], Value: []byte(values[i+1])})
	}
	return fields
}

// Message returns an entry of a topic. A nil Unmarshaler is WatermillMarshaler. The error wraps [ErrNoEntry] where
// there is no such entry. (XRANGE)
func (i *Inspector) Message(ctx context.Context, topic, id string, unmarshaler redischannels.Unmarshaler) (m Message, err error) {
	if topic == "" {
		return m, invalidArgument("topic", errEmpty)
	}
	parsed, err := parseID("id", id)
	if err != nil {
		return m, err
	}
	found, err := stream.ReadRange(ctx, i.config.Client, "XRANGE", topic, parsed.String(), parsed.String(), 1)
	if err == nil && len(found) == 0 {
		err = fmt.Errorf("%w: %s", ErrNoEntry, parsed)
	}
	if err == nil {
		m, err = newMessage(topic, found[0], unmarshaler)
	}
	return m, readError("message", topic, "", err)
}

// parseID reads an entry ID of an argument.
func parseID(field, text string) (stream.ID, error) {
	id, err := stream.ParseID(text)
	if err != nil {
		return id, invalidArgument(field, fmt.Errorf("must be an entry ID such as 1700000000000-0, got %q", text))
	}
	return id, nil
}
