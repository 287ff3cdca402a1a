// Reminders is a service that sends what it was asked to send, when it is time. What waits
// is stored in Redis: stop the service and start it again, and nothing is lost.
//
//	go run ./examples/reminders
//	curl -d '{"text":"tea is ready","in":"20s"}' localhost:8080/reminders
//	curl -d '{"text":"stretch","cron":"@every 10s"}' localhost:8080/reminders
//	curl localhost:8080/reminders
//	curl -X DELETE localhost:8080/reminders/ID
//
// Without REDIS_URL it uses an embedded server, which ends with it. ADDR is where it listens.
package main

import (
	"context"
	"fmt"
	"io"
	"net"

	"github.com/redis/go-redis/v9"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/examples/internal/serve"
)

func main() { serve.Main("reminders", run) }

// run serves until ctx ends.
func run(ctx context.Context, client *redis.Client, listener net.Listener, out io.Writer) error {
	hub, err := redischannels.NewHub(client, redischannels.HubConfig{})
	if err != nil {
		return err
	}
	defer hub.Close()
	service, err := newService(hub, out)
	if err != nil {
		return err
	}
	defer service.schedules.Close()
	fmt.Fprintf(out, "http://%s/reminders\n", listener.Addr())
	return serve.All(ctx, listener, service.handler(), map[string]func(context.Context) error{
		"sender": service.send, "schedules": service.schedules.Run,
	})
}
