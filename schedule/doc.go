// Package schedule publishes messages to a topic at given times: once, or repeatedly by a cron
// expression in a time zone. Schedules are stored in Redis under IDs that the application
// chooses.
//
// The next tick of a schedule is stored like a delayed message (see docs/delays.md). One of the
// processes that use the topic appends it, once. [Schedules.Run] computes the following tick; any
// number of processes may run it, and each tick makes one message. All times are by the clock of
// the Redis server.
//
//	schedules, err := schedule.New(schedule.Config{Client: client, Topic: "reports"}, logger)
//	_, err = schedules.Put(ctx, schedule.Schedule{
//		ID: "daily", Cron: "0 9 * * *", Zone: "Europe/Berlin", Message: msg,
//	})
//	err = schedules.Run(ctx)
//
// A tick that is late by more than [Schedule.Grace] is missed, because no process was running;
// [Misfire] is the policy for it. The metadata of a message has its schedule and tick
// ([FromMetadata]).
package schedule
