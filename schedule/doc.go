// Package schedule publishes messages to a topic at given times: once, or again and again by a cron
// expression in a time zone. Schedules are stored in Redis under IDs of the application's.
//
// The next tick of a schedule is stored as a delayed message is (see docs/delays.md), so that any
// process which has a part in the topic appends it, and one process only. [Schedules.Run] computes the tick
// behind it; any number of processes may run it, and each tick still makes one message. All times are
// by the clock of the Redis server.
//
//	schedules, err := schedule.New(schedule.Config{Client: client, Topic: "reports"}, logger)
//	_, err = schedules.Put(ctx, schedule.Schedule{
//		ID: "daily", Cron: "0 9 * * *", Zone: "Europe/Berlin", Message: msg,
//	})
//	err = schedules.Run(ctx)
//
// A tick that is late by more than [Schedule.Grace] was missed, since no process was there: [Misfire] says
// what becomes of it. What a message has been made by is in its metadata ([FromMetadata]).
package schedule
