#!/bin/sh
# Prints the path of a redis-server for the tests, and installs one when there is none.
#
# It takes, in this order: REDIS_SERVER (path or name of a binary), redis-server or
# valkey-server in PATH, a running server that REDIS_ADDR names (then it prints nothing), a
# package that apt-get, brew or dnf installs. With NO_INSTALL=1 it installs nothing.
# Everything that is for a person to read goes to standard error.
set -eu

say() { echo "redis.sh: $*" >&2; }

fail() {
	say "$*"
	say "Install Redis >= 6.2 or Valkey >= 7.2:"
	say "  Debian, Ubuntu: sudo apt-get install redis-server"
	say "  Fedora:         sudo dnf install valkey   (or redis)"
	say "  macOS:          brew install redis"
	say "or set REDIS_SERVER to the path of a redis-server,"
	say "or set REDIS_ADDR to host:port of a running server (tests that stop a server are skipped then)."
	exit 1
}

# find prints the first server in PATH. Some systems keep servers where only root looks.
find_server() {
	PATH="$PATH:/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/opt/homebrew/bin"
	command -v redis-server || command -v valkey-server
}

# check fails when the server is older than the library supports.
check() {
	version=$("$1" --version | sed -n 's/.*[ ]v=\([0-9]*\.[0-9]*\).*/\1/p')
	major=${version%%.*}
	minor=${version#*.}
	case "$version" in
	*.*) ;;
	*) fail "$1 does not tell its version" ;;
	esac
	if [ "$major" -lt 6 ] || { [ "$major" -eq 6 ] && [ "$minor" -lt 2 ]; }; then
		fail "$1 is version $version, which is too old"
	fi
	say "$1, version $version"
}

# as_root runs a command with the rights that a package manager needs.
as_root() {
	if [ "$(id -u)" -eq 0 ]; then
		"$@"
	elif command -v sudo >/dev/null && { [ -t 0 ] || sudo -n true 2>/dev/null; }; then
		sudo "$@"
	else
		fail "no redis-server, and neither root nor sudo to install one"
	fi
}

install_server() {
	if command -v apt-get >/dev/null; then
		say "no redis-server: installing it by apt-get"
		as_root apt-get update -q
		# RUNLEVEL=1 keeps the package's start script from running a server on port 6379.
		# Where systemd starts one all the same it does no harm: the tests use other ports.
		as_root env RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
			apt-get install -q -y --no-install-recommends redis-server
	elif command -v brew >/dev/null; then
		say "no redis-server: installing it by brew"
		brew install redis
	elif command -v dnf >/dev/null; then
		say "no redis-server: installing it by dnf"
		as_root dnf install -y valkey || as_root dnf install -y redis
	else
		fail "no redis-server, and no package manager that this script knows"
	fi
}

if [ -n "${REDIS_SERVER:-}" ]; then
	server=$(command -v "$REDIS_SERVER") || fail "REDIS_SERVER=$REDIS_SERVER does not exist"
elif server=$(find_server); then
	:
elif [ -n "${REDIS_ADDR:-}" ]; then
	say "using the server that REDIS_ADDR names"
	exit 0
elif [ "${NO_INSTALL:-}" = 1 ]; then
	fail "no redis-server"
else
	install_server >&2 || fail "the installation failed"
	server=$(find_server) || fail "the installation has brought no redis-server"
fi
check "$server"
echo "$server"
