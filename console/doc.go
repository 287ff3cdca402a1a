// Package console is a web page for operators: it shows the topics of a Redis server, their consumer groups,
// messages, dead letters and delayed messages, and acts on them.
//
// A [Console] is an [http.Handler] to mount in a service, behind its own authentication:
//
//	mux.Handle("/redis/", page) // Config.Prefix is "/redis"
//
// It is read-only, and shows no payloads, unless [Config.Authorize] permits more. All of it is embedded:
// it loads nothing from elsewhere. Pages are complete without JavaScript, and stay up to date with it.
package console
