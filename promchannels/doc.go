// Package promchannels exports metrics of package redischannels to Prometheus.
//
// [Metrics] counts what this process publishes and handles: it is an Instrumentation and a collector.
// [Collector] reads from Redis where topics and consumer groups stand, such as the lag; one process
// that exports it is enough. docs/telemetry.md lists the metrics.
package promchannels
