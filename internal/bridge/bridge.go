// Package bridge gives the other packages of this module what they need of the root package
// and users do not. The root package sets it when it is initialized.
package bridge

import (
	"context"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels/internal/housekeeper"
	"github.com/flaminco/redischannels/internal/keys"
	"github.com/flaminco/redischannels/internal/stream"
)

// Follow returns the loop of Reader.Follow from Latest of a *Reader[T], an
// iter.Seq2[Delivery[T], error]. live is called once, before the first delivery, when what is
// written from then on will come; start is the ID after which the loop begins, zero where the
// transport has none.
var Follow func(ctx context.Context, reader any, live func(start stream.ID)) any

// History returns the loop of Reader.History of a *Reader[T], an iter.Seq2[Delivery[T], error].
//
// In it, and in that of Follow, the end of a stream is a *CompletedError, also without a reason, and
// the loop continues.
var History func(ctx context.Context, reader any, from string) any

// JoinHub has the Close of a *Hub call a function, until leave is called, and returns a *Hub on the
// same client whose channels have no other defaults but OnEvent, OnReadClient and Logger. Its error
// is that of a hub that is closed.
var JoinHub func(hub any, close func() error) (own any, leave func(), err error)

// OnReadClient returns HubConfig.OnReadClient of a *Hub.
var OnReadClient func(hub any) func(*redis.Client)

// RedisError gives an error of Redis the sentinels of the root package.
var RedisError func(error) error

// CheckClient returns what prevents the use of a client.
var CheckClient func(redis.UniversalClient) error

// SideKeys returns the side keys of a topic by the SideKeys of a configuration.
var SideKeys func(topic string, configured func(topic string) string, client redis.UniversalClient) (keys.Topic, error)

// GroupStart returns the ID after which a group reads that begins at a position, or $ for the newest entry.
var GroupStart func(position string) (string, error)

// DeadLetterTopic returns the dead-letter stream of a topic by the functions of a configuration.
var DeadLetterTopic func(topic string, configured, sideKeys func(topic string) string, client redis.UniversalClient) (string, error)

// Pack returns the packed entry of a message that is delayed, or why there is none.
var Pack func(marshaler any, topic string, msg *message.Message) ([]byte, error)

// Logger returns a logger, or the default for nil.
var Logger func(watermill.LoggerAdapter) watermill.LoggerAdapter

// KeeperLog returns what writes to the log what a housekeeper reports.
var KeeperLog func(watermill.LoggerAdapter) housekeeper.Observer

// RunBeside is Run of a *Housekeeper with a function that runs meanwhile, until its context ends, and may
// report errors as events.
var RunBeside func(ctx context.Context, keeper any, beside func(ctx context.Context, report func(error))) error

// Encode returns the message of a value as a *Writer[T] makes it.
var Encode func(writer, value any) (*message.Message, error)
