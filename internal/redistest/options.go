package redistest

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Option changes how [Start] runs a server.
type Option func(*config)

// config is the configuration of a server. It is not changed after the first start, so a restart
// runs the same server again.
type config struct {
	binary   string
	password string
	users    []string
	lines    []string
	tls      bool
	clock    time.Duration // offset of the server's
	sentinel string        // what a sentinel watches; empty for a server of data
}

// AOF makes the server keep its data in an append-only file that is written to disk before
// every reply, so that what was confirmed survives [Server.Kill] and [Server.Restart].
func AOF() Option {
	return func(c *config) {
		c.lines = append(c.lines, "appendonly yes", "appendfsync always")
	}
}

// WithACL adds users, one per rule, in the words of the configuration file:
// "alice on >secret ~app:* +xadd". They are part of the configuration, so they survive a
// restart; what a test changes with ACL SETUSER does not.
//
// The user "default" stays as it is (every command, no password) unless a rule names it.
// [Server.Admin] has every right in any case.
func WithACL(rules ...string) Option {
	return func(c *config) {
		for _, rule := range rules {
			c.users = append(c.users, strings.TrimPrefix(strings.TrimSpace(rule), "user "))
		}
	}
}

// Password sets the password of the default user (requirepass). [Server.Options] carries it.
func Password(password string) Option {
	return func(c *config) { c.password = password }
}

// TLS makes the server speak TLS only, with certificates made for this server. It demands a
// certificate of its clients; [Server.TLSConfig] has one, and [Server.Options] carries it.
func TLS() Option {
	return func(c *config) { c.tls = true }
}

// Arg adds one directive of the configuration file, for example Arg("maxmemory", "4mb").
// It stands after the kit's own directives and so overrides them.
func Arg(name string, values ...string) Option {
	line := directive(name, values...)
	return func(c *config) { c.lines = append(c.lines, line) }
}

// Binary runs this server in place of the one that the environment names.
func Binary(path string) Option {
	return func(c *config) { c.binary = path }
}

// directive writes one line of the configuration file with every value quoted, because an
// empty value and one with blanks are otherwise read as something else.
func directive(name string, values ...string) string {
	words := []string{name}
	for _, v := range values {
		words = append(words, fmt.Sprintf("%q", v))
	}
	return strings.Join(words, " ")
}

// file returns the text of the configuration file for a server in dir on port. certs is nil
// for a server without TLS.
func (c *config) file(dir string, port int, adminPassword string, certs *certificates) string {
	lines := []string{
		"bind 127.0.0.1",
		"protected-mode no",
		"daemonize no",
		directive("dir", dir),
	}
	if c.sentinel != "" {
		return strings.Join(append(lines, fmt.Sprintf("port %d", port), c.sentinel), "\n") + "\n"
	}
	// A master waits five seconds for more replicas before it sends its data to the first.
	lines = append(lines, directive("save", ""), directive("repl-diskless-sync-delay", "0"))
	if certs == nil {
		lines = append(lines, fmt.Sprintf("port %d", port))
	} else {
		lines = append(lines,
			"port 0",
			fmt.Sprintf("tls-port %d", port),
			directive("tls-ca-cert-file", certs.caFile),
			directive("tls-cert-file", certs.serverCertFile),
			directive("tls-key-file", certs.serverKeyFile),
			"tls-replication yes",
		)
	}
	if c.password != "" {
		lines = append(lines, directive("requirepass", c.password), directive("masterauth", c.password))
	}
	for _, user := range slices.Concat(c.users, []string{
		adminUser + " on >" + adminPassword + " ~* &* +@all",
	}) {
		lines = append(lines, "user "+user)
	}
	lines = append(lines, c.lines...)
	return strings.Join(lines, "\n") + "\n"
}
