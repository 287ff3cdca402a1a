// Package unittests shows how a service is tested without Redis, with miniredis, and with a server.
package unittests
