// Package appender appends to streams for many callers: group commit of XADD.
//
// [Appender] sends the [Command]s of its callers and reports an [Outcome] for each. Single
// commands that wait while a pipeline is running are the next pipeline; several commands of one
// call are one transaction. It sends a command again only if the previous attempt has certainly
// not appended it.
package appender
