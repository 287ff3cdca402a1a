// Package appender appends to streams for many callers: group commit of XADD.
//
// [Appender] sends the [Command]s of its callers and reports an [Outcome] for each. Single
// commands that wait while a pipeline is under way make up the next one; several commands of
// one call are one transaction. It sends a command again only if it is certain that the
// attempt before has not appended.
package appender
