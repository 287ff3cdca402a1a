package outbox

import (
	"context"
	stdsql "database/sql"
	"fmt"
	"log"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-sql/v4/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/components/forwarder"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels"
)

var logger watermill.LoggerAdapter = watermill.NopLogger{}

// placeOrder stores an order and its message in one transaction: both or neither.
func placeOrder(ctx context.Context, db *stdsql.DB, id string, order []byte) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() // has no effect after Commit
	if _, err := tx.ExecContext(ctx, `INSERT INTO orders (id, content) VALUES ($1, $2)`, id, order); err != nil {
		return err
	}
	table, err := sql.NewPublisher(sql.TxFromStdSQL(tx), sql.PublisherConfig{SchemaAdapter: sql.DefaultPostgreSQLSchema{}}, logger)
	if err != nil {
		return err
	}
	outbox := forwarder.NewPublisher(table, forwarder.PublisherConfig{ForwarderTopic: "outbox"})
	if err := outbox.Publish("orders", message.NewMessage(watermill.NewUUID(), order)); err != nil {
		return err
	}
	return tx.Commit()
}

// newForwarder moves messages from the table to Redis. A message is acknowledged in the table after Redis has
// confirmed it.
func newForwarder(db *stdsql.DB, client redis.UniversalClient) (*forwarder.Forwarder, error) {
	table, err := sql.NewSubscriber(sql.BeginnerFromStdSQL(db), sql.SubscriberConfig{
		SchemaAdapter:    sql.DefaultPostgreSQLSchema{},
		OffsetsAdapter:   sql.DefaultPostgreSQLOffsetsAdapter{},
		InitializeSchema: true,
	}, logger)
	if err != nil {
		return nil, err
	}
	publisher, err := redischannels.NewPublisher(redischannels.PublisherConfig{Client: client}, logger)
	if err != nil {
		return nil, err
	}
	return forwarder.NewForwarder(table, publisher, logger, forwarder.Config{ForwarderTopic: "outbox"})
}

// Both are compiled here. Running them needs a PostgreSQL.
var _, _ = placeOrder, newForwarder

// credit adds an amount to an account unless the message has done so before. It returns 1 if it did now.
var credit = redis.NewScript(`
if redis.call('SET', KEYS[1], '1', 'NX', 'EX', ARGV[2]) then
  redis.call('INCRBY', KEYS[2], ARGV[1])
  return 1
end
return 0
`)

// An inbox in Redis: the effect and the note that it has happened are one script, so a message that is delivered
// twice has one effect.
func Example_inbox() {
	server, err := miniredis.Run() // stands for localhost:6379
	if err != nil {
		log.Fatal(err)
	}
	defer server.Close()
	client := redis.NewClient(&redis.Options{Addr: server.Addr()})
	defer client.Close()

	handler := func(msg *message.Message) error {
		seen := "{accounts}:seen:" + msg.UUID
		const week = 7 * 24 * 60 * 60
		return credit.Run(msg.Context(), client, []string{seen, "{accounts}:eva"}, string(msg.Payload), week).Err()
	}

	payment := message.NewMessage(watermill.NewUUID(), []byte("30"))
	for range 2 { // the second delivery of the same message
		if err := handler(payment); err != nil {
			log.Fatal(err)
		}
	}
	fmt.Println(client.Get(context.Background(), "{accounts}:eva").Val())
	// Output: 30
}

// creditSQL is the same with a database: the note is a row with a unique key, in the transaction of the effect.
func creditSQL(db *stdsql.DB) message.NoPublishHandlerFunc {
	return func(msg *message.Message) error {
		tx, err := db.BeginTx(msg.Context(), nil)
		if err != nil {
			return err
		}
		defer tx.Rollback()
		done, err := tx.ExecContext(msg.Context(), `INSERT INTO inbox (uuid) VALUES ($1) ON CONFLICT DO NOTHING`, msg.UUID)
		if err != nil {
			return err
		}
		if n, err := done.RowsAffected(); err != nil || n == 0 {
			return err // an earlier delivery has had the effect
		}
		if _, err := tx.ExecContext(msg.Context(), `UPDATE accounts SET balance = balance + $1 WHERE id = 'eva'`, string(msg.Payload)); err != nil {
			return err
		}
		return tx.Commit()
	}
}

var _ = creditSQL
