// Package redistest is the test kit of the module: real redis-server processes, and the
// tools that make them fail at an exact moment.
//
//   - [Start] runs a private server on a free port; [Shared] is one server per test process,
//     for tests that keep to their own keys ([Key]).
//   - [StartSentinels] runs a master with replicas and the sentinels that promote one of them.
//   - [StartCluster] runs a cluster of such servers, whose slots a test can move.
//   - [Proxy] stands between a client and a server: it cuts, refuses, delays, swallows, and
//     loses one reply of a command that the server has executed.
//   - [Hook] acts exactly before or after one command of a go-redis client.
//   - [StartChild] runs code of the test binary in a process that a test can kill or freeze.
//   - [Goroutines], [BlockedClients], [Connections] and [CommandStats] count what must not
//     grow; [RecordingLogger] keeps what was logged.
//   - [Eventually] waits for an event. It is the only place of the kit that waits for time.
//
// A package that uses the kit hands its TestMain to [Main].
//
// # Environment
//
//   - REDIS_SERVER: path or name of the server's binary. Without it: redis-server, then
//     valkey-server, in PATH.
//   - REDIS_ADDR: "host:port" or a redis:// URL of a running server that [Shared] uses in
//     place of a process of its own. It is never flushed; the keys made by [Key] are removed
//     at the end. [Start] does not use it, because it must be able to stop its server.
//   - REDIS_DB: number of the database that every client of the kit selects; 0 without it.
//   - REQUIRE_REDIS=1: a missing server fails a test that would otherwise be skipped. With
//     REDIS_ADDR the tests that need [Start] are skipped all the same.
//
// All functions and methods may be called from several goroutines, unless they say otherwise.
// Those that take a [testing.TB] end the test when they fail, so they belong into the
// goroutine of the test.
package redistest
