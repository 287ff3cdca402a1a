package redischannels

import (
	"fmt"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/flaminco/redischannels/internal/appender"
	"github.com/flaminco/redischannels/internal/stream"
)

// appendOverhead is about what a command costs on the wire beside its fields.
const appendOverhead = 64

// publishBatch has the messages of one call as commands.
type publishBatch struct {
	topic   string
	head    appender.Head
	msgs    []*message.Message
	cmds    []appender.Command
	sizes   []int // of the fields of each
	room    []any // for arguments
	results []appender.Result
}

// newPublishBatch makes room for the messages; for a single one, which is the
// common case, by one allocation.
func newPublishBatch(topic string, msgs []*message.Message) *publishBatch {
	if len(msgs) == 1 {
		one := new(struct {
			publishBatch
			cmd    [1]appender.Command
			size   [1]int
			result [1]appender.Result
		})
		one.publishBatch = publishBatch{topic: topic, msgs: msgs, cmds: one.cmd[:], sizes: one.size[:], results: one.result[:]}
		return &one.publishBatch
	}
	return &publishBatch{
		topic:   topic,
		msgs:    msgs,
		cmds:    make([]appender.Command, len(msgs)),
		sizes:   make([]int, len(msgs)),
		results: make([]appender.Result, len(msgs)),
	}
}

func (b *publishBatch) uuid(i int) string {
	if b.msgs[i] == nil {
		return ""
	}
	return b.msgs[i].UUID
}

// chunk returns the end and the size of the transaction that begins at start. A
// message that is larger than the bound of a transaction makes one of its own.
func (b *publishBatch) chunk(start int) (end, bytes int) {
	for end = start; end < len(b.cmds) && end-start < appender.MaxCommands; end++ {
		size := b.sizes[end] + appendOverhead
		if end > start && bytes+size > appender.MaxBytes {
			break
		}
		bytes += size
	}
	return end, bytes
}

// marshal makes commands of all messages, or an error that says which message
// prevents them.
func (p *Publisher) marshal(topic string, msgs []*message.Message) (*publishBatch, error) {
	b := newPublishBatch(topic, msgs)
	b.head = appender.NewHead(topic, p.trim(topic))
	for i, msg := range msgs {
		if err := p.marshalOne(b, i, msg); err != nil {
			return nil, b.refuse(i, err)
		}
	}
	return b, nil
}

func (p *Publisher) marshalOne(b *publishBatch, i int, msg *message.Message) error {
	if msg == nil {
		return fmt.Errorf("%w: message is nil", ErrInvalidArgument)
	}
	fields, err := p.fields(b.topic, msg)
	if err != nil {
		return fmt.Errorf("marshal: %w", err)
	}
	if len(fields) == 0 {
		return fmt.Errorf("%w: the marshaler returned no field, and Redis has no empty entries", ErrInvalidConfig)
	}
	cmd := &b.cmds[i]
	b.room = cmd.Start(b.room, b.head, len(fields), len(b.msgs)-i-1)
	for k := range fields {
		b.sizes[i] += len(fields[k].Name) + len(fields[k].Value)
		cmd.Field(fieldName(fields[k].Name), &fields[k].Value)
	}
	if p.config.MaxPayload > 0 && b.sizes[i] > p.config.MaxPayload {
		return fmt.Errorf("%w: %d bytes, MaxPayload is %d", ErrTooLarge, b.sizes[i], p.config.MaxPayload)
	}
	return nil
}

// fieldName returns the name as an interface. One made of a constant costs nothing.
func fieldName(name string) any {
	switch name {
	case uuidField:
		return uuidField
	case metadataField:
		return metadataField
	case payloadField:
		return payloadField
	}
	return name
}

// fields calls the marshaler. A panic in it is an error of the message: in a
// handler's goroutine it would take the whole process with it.
func (p *Publisher) fields(topic string, msg *message.Message) (fields []Field, err error) {
	defer func() {
		if v := recover(); v != nil {
			fields, err = nil, fmt.Errorf("panic in the marshaler: %v", v)
		}
	}()
	return p.config.Marshaler.Marshal(topic, msg)
}

// refuse returns the error of a batch of which nothing was sent because of one
// message.
func (b *publishBatch) refuse(culprit int, cause error) error {
	err := &PublishError{Topic: b.topic, Results: make([]PublishResult, len(b.msgs))}
	cause = fmt.Errorf("message %d (UUID %q): %w", culprit, b.uuid(culprit), cause)
	for i := range b.msgs {
		err.Results[i] = PublishResult{Index: i, UUID: b.uuid(i), Err: cause}
	}
	return err
}

// trim returns what bounds the stream of the topic.
func (p *Publisher) trim(topic string) stream.Trim {
	if r, ok := p.config.TopicRetention[topic]; ok {
		return r.trim()
	}
	return p.config.Retention.trim()
}

func (r Retention) trim() stream.Trim {
	return stream.Trim{MaxLen: r.MaxLen, MaxAge: r.MaxAge, Exact: r.Exact}
}
