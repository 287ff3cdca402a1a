package redischannels

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/redisconn"
	"github.com/flaminco/redischannels/internal/stream"
)

// DeadLettersConfig configures [NewDeadLetters]. Only Client is required.
type DeadLettersConfig struct {
	// Client is used for all commands and is never closed. *redis.Client, also
	// from redis.NewFailoverClient, and *redis.ClusterClient are supported.
	Client redis.UniversalClient

	// SideKeys is that of PublisherConfig.
	SideKeys func(topic string) string

	// DeadLetterTopic names the stream for dead letters of a topic, as in the
	// SubscriberConfig of the consumers. Defaults to `base:dead`, where base is that of
	// SideKeys: see DefaultDeadLetterTopic.
	DeadLetterTopic func(topic string) string
}

// Validate reports every problem of the configuration in one joined error. Each
// names its field and wraps [ErrInvalidConfig].
func (c DeadLettersConfig) Validate() error {
	v := validation{prefix: "DeadLettersConfig"}
	v.client(c.Client)
	return v.err()
}

// DeadLetters lists dead letters, requeues them to the group that failed, appends them as new
// entries, and deletes them. It is safe for concurrent use, even while consumers run. It has no
// resources and needs no Close. All methods block until Redis has replied or ctx ends. The error
// of an invalid topic or ID wraps [ErrInvalidArgument]; nothing was done then.
type DeadLetters struct {
	config DeadLettersConfig
	logger watermill.LoggerAdapter
}

// NewDeadLetters returns a DeadLetters. It sends no commands to Redis. Each change is logged at
// Info with the numbers of entries, unless logger is nil.
func NewDeadLetters(config DeadLettersConfig, logger watermill.LoggerAdapter) (*DeadLetters, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	return &DeadLetters{config: config, logger: loggerOrDefault(logger)}, nil
}

// DeadLetter is an entry that a consumer group has dead-lettered.
type DeadLetter struct {
	ID       string    // in the dead-letter stream, for Requeue, Reappend and Purge
	Topic    string    // topic of the original
	EntryID  string    // ID of the original in its topic
	Group    string    // consumer group that failed
	Consumer string    // consumer that moved it
	Reason   string    // why, at most 1,024 bytes
	Count    int       // number of deliveries to a handler
	Time     time.Time // when it was moved, by the consumer's clock, to the millisecond
	Fields   []Field   // of the original, in their order; a copy that the caller owns
}

// Entry returns the original for an [Unmarshaler].
func (d DeadLetter) Entry() Entry {
	return Entry{Topic: d.Topic, ID: d.EntryID, Fields: d.Fields}
}

// Message decodes the original with the Unmarshaler of the consumers, or WatermillMarshaler if it
// is nil. The error is a *[DecodeError].
func (d DeadLetter) Message(unmarshaler Unmarshaler) (*message.Message, error) {
	return d.Entry().Message(unmarshaler)
}

// DeadLetterQuery selects dead letters for [DeadLetters.List]. The zero value selects all.
type DeadLetterQuery struct {
	// Group is the consumer group that failed. Empty means all.
	Group string
	// After is the ID of a dead letter: the list begins after it. Empty means from the oldest.
	After string
	// Limit is the maximum number of dead letters. 0 means no limit.
	Limit int
}

// Pages of List: a page has up to this many entries, as long as they are small.
const (
	deadPageFirst = 16
	deadPageMost  = 256
	deadPageBytes = 1 << 20
)

// List yields the dead letters of a topic, oldest first, up to the newest one when the loop
// begins, so a loop that requeues them ends. They are read in pages, of up to 16 entries at
// first, then of about 1 MiB as estimated from the sizes so far. A stream that does not exist has
// no dead letters. An error ends the list.
//
// If several topics share a dead-letter stream, List yields only those of the topic. Entries of
// other programs are yielded with an empty Topic, unless the query has a Group. With a cluster
// client that reads from replicas the newest dead letters can be missing. (XREVRANGE, XRANGE)
func (d *DeadLetters) List(ctx context.Context, topic string, query DeadLetterQuery) iter.Seq2[DeadLetter, error] {
	return func(yield func(DeadLetter, error) bool) {
		if err := d.list(ctx, topic, query, func(l DeadLetter) bool { return yield(l, nil) }); err != nil {
			yield(DeadLetter{}, err)
		}
	}
}

func (d *DeadLetters) list(ctx context.Context, topic string, query DeadLetterQuery, yield func(DeadLetter) bool) error {
	dead, err := d.config.stream(topic)
	if err != nil {
		return err
	}
	var after stream.ID
	if query.After != "" {
		if after, err = parseDeadLetterID(query.After); err != nil {
			return err
		}
	}
	if query.Limit < 0 {
		return invalidArgument("DeadLetterQuery.Limit", fmt.Errorf("must be above 0, or 0 for no limit, got %d", query.Limit))
	}
	last, err := stream.LastEntryID(ctx, d.config.Client, dead)
	if err != nil {
		return deadLettersError("list", dead, err)
	}
	if last == "" {
		return nil
	}

	yielded := 0
	for count := deadPageFirst; ; {
		page, err := stream.RangeDeadLetters(ctx, d.config.Client, dead, after, last, count)
		if err != nil {
			return deadLettersError("list", dead, err)
		}
		largest := 1
		for i := range page {
			e := &page[i]
			largest = max(largest, e.Size)
			foreign := e.Topic == ""
			if foreign && query.Group != "" || !foreign && (e.Topic != topic || query.Group != "" && e.Group != query.Group) {
				continue
			}
			yielded++
			if !yield(newDeadLetter(e)) || yielded == query.Limit {
				return nil
			}
		}
		if len(page) < count {
			return nil
		}
		if after, err = stream.ParseID(page[len(page)-1].ID); err != nil {
			return deadLettersError("list", dead, err)
		}
		count = max(1, min(deadPageBytes/largest, 2*count, deadPageMost))
	}
}

func newDeadLetter(e *stream.DeadEntry) DeadLetter {
	l := DeadLetter{
		ID: e.ID, Topic: e.Topic, EntryID: e.EntryID, Group: e.Group, Consumer: e.Consumer,
		Reason: e.Reason, Count: e.Count, Time: e.Time,
		Fields: make([]Field, 0, len(e.Values)/2),
	}
	for i := 0; i < len(e.Values); i += 2 {
		l.Fields = append(l.Fields, Field{Name: e.Values[i], Value: []byte(e.Values[i+1])})
	}
	return l
}

// RequeueOutcome is the outcome of [DeadLetters.Requeue] or [DeadLetters.Reappend] for one dead
// letter.
type RequeueOutcome uint8

const (
	// RequeueDone: the message is in the return stream of the group that failed, with no
	// deliveries counted, and the dead letter is deleted. A consumer of the group reads it
	// at once.
	RequeueDone RequeueOutcome = iota + 1
	// ReappendDone: the message was appended to the topic as a new entry, and the
	// dead letter is deleted.
	ReappendDone
	// RequeueNotFound: the dead letter does not exist, or no longer exists. This is also the
	// outcome if the reply to a first attempt was lost and the Redis client has retried.
	RequeueNotFound
	// RequeueForeign: the entry is not a dead letter of this topic. It stays.
	RequeueForeign
	// RequeueGroupMissing: the consumer group, or the topic, no longer exists. The dead letter
	// stays.
	RequeueGroupMissing
	// RequeueStillPending: the original is in the pending entries list of the group. The dead
	// letter stays.
	RequeueStillPending
	// RequeueNoReader: the group has no return stream, because a consumer of this library has
	// never subscribed in it; other libraries do not read return streams. The dead letter stays.
	// Reappend can deliver its message to all groups.
	RequeueNoReader
	// RequeueNotDelivered: the position of the group is before the original, because the group
	// was re-created or set back, so it will read the original. The dead letter stays.
	RequeueNotDelivered
	// RequeueTooLarge: the dead letter has more than about 3,900 fields, too many for Requeue and
	// Reappend. It stays; publish the message of List instead.
	RequeueTooLarge
)

var requeueOutcomeNames = [...]string{
	RequeueDone:         "requeued",
	ReappendDone:        "reappended",
	RequeueNotFound:     "not found",
	RequeueForeign:      "foreign",
	RequeueGroupMissing: "group missing",
	RequeueStillPending: "still pending",
	RequeueNoReader:     "no reader",
	RequeueNotDelivered: "not delivered",
	RequeueTooLarge:     "too large",
}

// String returns the outcome in plain words.
func (o RequeueOutcome) String() string { return enumName(requeueOutcomeNames[:], "outcome", o) }

// MarshalText returns the same, for JSON and logs.
func (o RequeueOutcome) MarshalText() ([]byte, error) { return []byte(o.String()), nil }

// UnmarshalText sets the value of that name. The error wraps [ErrInvalidArgument].
func (o *RequeueOutcome) UnmarshalText(text []byte) error {
	return parseEnum(requeueOutcomeNames[:], "outcome", text, o)
}

// requeueOutcomes are the outcomes by those of internal/stream.
var requeueOutcomes = [...]RequeueOutcome{
	stream.Requeued:            RequeueDone,
	stream.Reappended:          ReappendDone,
	stream.RequeueNotFound:     RequeueNotFound,
	stream.RequeueForeign:      RequeueForeign,
	stream.RequeueGroupMissing: RequeueGroupMissing,
	stream.RequeueStillPending: RequeueStillPending,
	stream.RequeueNoReader:     RequeueNoReader,
	stream.RequeueNotDelivered: RequeueNotDelivered,
	stream.RequeueTooLarge:     RequeueTooLarge,
}

// RequeueResult is the result for one dead letter.
type RequeueResult struct {
	ID      string // of the dead letter
	Outcome RequeueOutcome
	EntryID string // of the original; empty for RequeueNotFound and RequeueForeign
	Group   string // the group that had failed; empty like EntryID
	NewID   string // ID of the new entry, for ReappendDone
}

// Requeue returns dead letters to the consumer groups that failed, and to no others. Each is
// appended to the return stream of its group, which every subscription of the group reads beside
// the topic, and its delivery count begins at 1. The original may have been trimmed. The message
// has the ID of the original (EntryIDFromContext), but no longer a place in the order of the
// topic.
//
// Each dead letter is requeued in one atomic step or stays unchanged. The results are in the
// order of the IDs; only RequeueDone means a change. After an error they end before the first ID
// whose outcome is unknown; Requeue can be called again with all IDs. (XADD base:return:GROUP,
// XDEL)
func (d *DeadLetters) Requeue(ctx context.Context, topic string, ids ...string) ([]RequeueResult, error) {
	dead, ids, err := d.arguments(topic, ids)
	if err != nil || len(ids) == 0 {
		return nil, err
	}
	of, err := sideKeys(topic, d.config.SideKeys, d.config.Client)
	if err != nil {
		return nil, err
	}
	answers, err := stream.RequeueDeadLetters(ctx, d.config.Client, topic, dead, of.Return, ids)
	return d.results("requeue", topic, dead, ids, answers, err)
}

// Reappend appends the messages of dead letters to their topic as new entries, without the
// dead-letter fields, and deletes the dead letters. All consumer groups and all fan-out
// subscriptions of the topic receive them, including those that have handled the original: use it
// only if Requeue returns RequeueNoReader or RequeueGroupMissing, or if all groups should receive
// them. The stream is not trimmed.
//
// Each dead letter is appended in one atomic step. Results and errors are those
// of Requeue. (XADD, XDEL)
func (d *DeadLetters) Reappend(ctx context.Context, topic string, ids ...string) ([]RequeueResult, error) {
	dead, ids, err := d.arguments(topic, ids)
	if err != nil || len(ids) == 0 {
		return nil, err
	}
	answers, err := stream.ReappendDeadLetters(ctx, d.config.Client, topic, dead, ids)
	return d.results("reappend", topic, dead, ids, answers, err)
}

// Purge deletes entries of any kind from the dead-letter stream, and returns how many of the IDs
// existed. The originals are not changed. After an error it is the number of entries known to be
// deleted. (XDEL)
func (d *DeadLetters) Purge(ctx context.Context, topic string, ids ...string) (int, error) {
	dead, ids, err := d.arguments(topic, ids)
	if err != nil || len(ids) == 0 {
		return 0, err
	}
	n, err := stream.DeleteEntries(ctx, d.config.Client, dead, ids)
	d.logger.Info("Dead letters: purge", watermill.LogFields{
		"topic": topic, "dead_letter_topic": dead, "asked": len(ids), "purged": n,
	})
	return n, deadLettersError("purge", dead, err)
}

// arguments resolves the dead-letter stream and normalizes the IDs, so that nothing is done if
// one of them is invalid.
func (d *DeadLetters) arguments(topic string, ids []string) (dead string, normal []string, err error) {
	if dead, err = d.config.stream(topic); err != nil {
		return "", nil, err
	}
	normal = make([]string, len(ids))
	for i, id := range ids {
		parsed, err := parseDeadLetterID(id)
		if err != nil {
			return "", nil, err
		}
		normal[i] = parsed.String()
	}
	return dead, normal, nil
}

// results converts the replies for the first of the IDs to results, and logs the number of each
// outcome.
func (d *DeadLetters) results(action, topic, dead string, ids []string, answers []stream.RequeueAnswer, err error) ([]RequeueResult, error) {
	fields := watermill.LogFields{"topic": topic, "dead_letter_topic": dead, "asked": len(ids)}
	results := make([]RequeueResult, len(answers))
	for i, a := range answers {
		outcome := requeueOutcomes[a.Outcome]
		results[i] = RequeueResult{ID: ids[i], Outcome: outcome, EntryID: a.EntryID, Group: a.Group, NewID: a.NewID}
		n, _ := fields[outcome.String()].(int)
		fields[outcome.String()] = n + 1
	}
	d.logger.Info("Dead letters: "+action, fields)
	return results, deadLettersError(action, dead, err)
}

func parseDeadLetterID(id string) (stream.ID, error) {
	parsed, err := stream.ParseID(id)
	if err != nil {
		return stream.ID{}, invalidArgument("ID of a dead letter", errNoEntryID(id))
	}
	return parsed, nil
}

func deadLettersError(action, dead string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("redischannels: %s dead letters of %q: %w", action, dead, redisError(err))
}

// DefaultDeadLetterTopic returns the dead-letter stream of a topic: `topic:dead` for a topic with
// a hash tag, otherwise `{topic}:dead`. Both are in the topic's hash slot, which Redis Cluster
// requires because the move is one atomic step on both streams. For a topic with a `}` and no
// valid hash tag it returns an error that wraps [ErrInvalidArgument], because no name made of the
// topic shares its slot: such a topic needs SideKeys in the configurations.
func DefaultDeadLetterTopic(topic string) (string, error) {
	return deadLetterTopic(topic, nil, nil, nil)
}

// stream returns the dead-letter stream of a topic.
func (c DeadLettersConfig) stream(topic string) (string, error) {
	return deadLetterTopic(topic, c.DeadLetterTopic, c.SideKeys, c.Client)
}

// deadLetterTopic returns the dead-letter stream of a topic by the configured function, or by
// default, and checks it for the client.
func deadLetterTopic(topic string, configured, side func(topic string) string, client redis.UniversalClient) (string, error) {
	if err := validateTopic(topic); err != nil {
		return "", err
	}
	if configured == nil {
		of, err := sideKeys(topic, side, client)
		return of.Dead(), err
	}
	dead := configured(topic)
	_, cluster := client.(*redis.ClusterClient)
	return dead, checkDeadLetterTopic(topic, dead, cluster)
}

// checkDeadLetterTopic reports a name that cannot be the dead-letter stream of the topic.
func checkDeadLetterTopic(topic, dead string, cluster bool) error {
	var problem error
	switch {
	case dead == "":
		problem = errEmpty
	case dead == topic:
		// A dead letter would be delivered to the group that has dead-lettered it.
		problem = errors.New("must not be the topic itself")
	case cluster && redisconn.Slot(topic) != redisconn.Slot(dead):
		problem = fmt.Errorf("%q is in another hash slot than the topic: put the part that both have in common in braces", dead)
	default:
		return nil
	}
	return fmt.Errorf("redischannels: DeadLetterTopic of topic %q: %w: %w", topic, ErrInvalidConfig, problem)
}
