package redischannels

import (
	"fmt"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/flaminco/redischannels/internal/appender"
	"github.com/flaminco/redischannels/internal/stream"
)

// appendOverhead is the approximate size of a command on the wire without its fields.
const appendOverhead = 64

// publishBatch contains the messages of one call as commands.
type publishBatch struct {
	topic   string
	head    appender.Head
	msgs    []*message.Message
	cmds    []appender.Command
	sizes   []int // of the fields of each
	room    []any // for arguments
	results []appender.Result
}

// newPublishBatch returns a batch with space for the messages. For a single message, the common
// case, it is one allocation.
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

// uuidOf returns the UUID of a message, which may be nil.
func uuidOf(msg *message.Message) string {
	if msg == nil {
		return ""
	}
	return msg.UUID
}

// chunk returns the end and the size of the transaction that begins at start, of messages with
// these sizes. A message that is larger than the limit of a transaction is a transaction by
// itself.
func chunk(sizes []int, start int) (end, bytes int) {
	for end = start; end < len(sizes) && end-start < appender.MaxCommands; end++ {
		size := sizes[end] + appendOverhead
		if end > start && bytes+size > appender.MaxBytes {
			break
		}
		bytes += size
	}
	return end, bytes
}

// marshal encodes all messages as commands, or returns an error that names the message that
// cannot be encoded.
func (p *Publisher) marshal(topic string, msgs []*message.Message) (*publishBatch, error) {
	b := newPublishBatch(topic, msgs)
	b.head = appender.NewHead(topic, p.trim(topic))
	for i, msg := range msgs {
		if err := p.marshalOne(b, i, msg); err != nil {
			return nil, refused(topic, msgs, i, err)
		}
	}
	return b, nil
}

func (p *Publisher) marshalOne(b *publishBatch, i int, msg *message.Message) error {
	fields, size, err := p.fields(b.topic, msg)
	if err != nil {
		return err
	}
	b.sizes[i] = size
	cmd := &b.cmds[i]
	b.room = cmd.Start(b.room, b.head, len(fields), len(b.msgs)-i-1)
	for k := range fields {
		cmd.Field(fieldName(fields[k].Name), &fields[k].Value)
	}
	return nil
}

// fields returns the fields of a message and their size in bytes.
func (p *Publisher) fields(topic string, msg *message.Message) (fields []Field, size int, err error) {
	if msg == nil {
		return nil, 0, fmt.Errorf("%w: message is nil", ErrInvalidArgument)
	}
	fields, err = p.callMarshaler(topic, msg)
	if err != nil {
		return nil, 0, fmt.Errorf("marshal: %w", err)
	}
	if len(fields) == 0 {
		return nil, 0, fmt.Errorf("%w: the marshaler returned no field, and Redis has no empty entries", ErrInvalidConfig)
	}
	for k := range fields {
		size += len(fields[k].Name) + len(fields[k].Value)
	}
	if p.config.MaxPayload > 0 && size > p.config.MaxPayload {
		return nil, 0, fmt.Errorf("%w: %d bytes, MaxPayload is %d", ErrTooLarge, size, p.config.MaxPayload)
	}
	return fields, size, nil
}

// fieldName returns the name as an interface. For a constant it does not allocate.
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

// callMarshaler calls the marshaler. A panic in it is returned as an error of the message: in a
// handler's goroutine it would end the process.
func (p *Publisher) callMarshaler(topic string, msg *message.Message) (fields []Field, err error) {
	defer func() {
		if v := recover(); v != nil {
			fields, err = nil, fmt.Errorf("panic in the marshaler: %v", v)
		}
	}()
	return p.config.Marshaler.Marshal(topic, msg)
}

// refused returns the error of messages of which none was sent because of the culprit.
func refused(topic string, msgs []*message.Message, culprit int, cause error) error {
	err := &PublishError{Topic: topic, Results: make([]PublishResult, len(msgs))}
	cause = fmt.Errorf("message %d (UUID %q): %w", culprit, uuidOf(msgs[culprit]), cause)
	for i, msg := range msgs {
		err.Results[i] = PublishResult{Index: i, UUID: uuidOf(msg), Err: cause}
	}
	return err
}

// publishResults returns the outcomes of all messages.
func (b *publishBatch) publishResults() []PublishResult {
	results := make([]PublishResult, len(b.results))
	for i, r := range b.results {
		results[i] = publishResult(i, uuidOf(b.msgs[i]), r)
	}
	return results
}

// retention returns the bounds of the stream of the topic.
func (p *Publisher) retention(topic string) Retention {
	if r, ok := p.config.TopicRetention[topic]; ok {
		return r
	}
	return p.config.Retention
}

func (p *Publisher) trim(topic string) stream.Trim { return p.retention(topic).trim() }

// retain has the housekeeper trim the topic, from the first message on.
func (p *Publisher) retain(topic string) error {
	consumed := p.retention(topic).TrimConsumed
	if consumed == nil {
		return nil
	}
	if _, retained := p.trimmed.Load(topic); retained {
		return nil
	}
	of, err := sideKeys(topic, p.config.SideKeys, p.config.Client)
	if err != nil {
		return err
	}
	if _, retained := p.trimmed.LoadOrStore(topic, true); !retained {
		p.housekeeper().Trim(of, consumed.policy())
	}
	return nil
}

func (r Retention) trim() stream.Trim {
	return stream.Trim{MaxLen: r.MaxLen, MaxAge: r.MaxAge, Exact: r.Exact}
}
