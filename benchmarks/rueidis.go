package main

import (
	"errors"

	"github.com/redis/rueidis"
)

// A program that uses rueidis without a library and without Watermill's messages. The client
// sends the commands of concurrent callers in common pipelines.

// openRueidis returns a client. It is closed by the peer.
func openRueidis(t *trial) (rueidis.Client, error) {
	return rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{t.server.Addr}, DisableCache: true, ForceSingleClient: true})
}

// rueidisPublish publishes by so many goroutines, so many messages per call.
func rueidisPublish(goroutines, batch int) func(*trial) error {
	return func(t *trial) error {
		client, err := openRueidis(t)
		if err != nil {
			return err
		}
		defer client.Close()
		payload := rueidis.BinaryString(t.payload)
		if err := t.start(); err != nil {
			return err
		}
		err = parallel(goroutines, func(g int) error {
			commands := make(rueidis.Commands, 0, batch)
			return calls(t.n, goroutines, batch, g, func(from, n int) error {
				commands = commands[:0]
				for i := from; i < from+n; i++ {
					commands = append(commands, client.B().Xadd().Key(t.topic).Id("*").FieldValue().
						FieldValue("_watermill_message_uuid", uuid(i)).FieldValue("metadata", "").FieldValue("payload", payload).Build())
				}
				if n == 1 {
					return client.Do(t.ctx, commands[0]).Error()
				}
				for _, result := range client.DoMulti(t.ctx, commands...) {
					if err := result.Error(); err != nil {
						return err
					}
				}
				return nil
			})
		})
		return errors.Join(err, t.stop(), t.readBack(), t.check(false))
	}
}

// rueidisSubscribe reads by the thousand and acknowledges each batch at once.
func rueidisSubscribe(t *trial) error {
	if err := t.fill(); err != nil {
		return err
	}
	client, err := openRueidis(t)
	if err != nil {
		return err
	}
	defer client.Close()
	if err := t.start(); err != nil {
		return err
	}
	ids := make([]string, 0, 1000)
	for !t.complete() {
		read := client.B().Xreadgroup().Group(group, "rueidis").Count(1000).Block(bareBlock.Milliseconds()).
			Streams().Key(t.topic).Id(">").Build()
		streams, err := client.Do(t.ctx, read).AsXRead()
		if rueidis.IsRedisNil(err) {
			continue
		}
		if err != nil {
			return err
		}
		ids = ids[:0]
		for _, entry := range streams[t.topic] {
			t.countOne(entry.FieldValues["_watermill_message_uuid"], len(entry.FieldValues["payload"]))
			ids = append(ids, entry.ID)
		}
		if err := client.Do(t.ctx, client.B().Xack().Key(t.topic).Group(group).Id(ids...).Build()).Error(); err != nil {
			return err
		}
	}
	return errors.Join(t.awaitSettled(), t.stop(), t.check(true))
}
