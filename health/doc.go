// Package health provides HTTP handlers for the probes of an orchestrator and for an autoscaler.
//
// [Live] reports that the process serves requests. It never depends on Redis: the library reconnects by
// itself, and a restart of all processes makes an outage longer. [Readiness] reports whether the
// subscriptions of this process are live and Redis replies. [Backlog] returns the work that waits for
// consumer groups as JSON, in the form of KEDA's metrics-api scaler.
package health
