// Package components tests Watermill's components on both transports of
// redischannels: requestreply, cqrs, fanin, forwarder, delay, metrics and requeuer. They also
// show how each of them is set up.
package components
