// Package outbox shows a transactional outbox in PostgreSQL and an inbox in Redis, in its examples.
package outbox
