// Package sse streams a channel to browsers as Server-Sent Events.
package sse
