#!/bin/sh
# Runs a command against several servers, and brings servers that the system does not have.
#
#   scripts/servers.sh run COMMAND...   runs COMMAND with REDIS_SERVER set to each server
#   scripts/servers.sh fetch            brings newer servers and prints their paths
#
# run takes the servers that SERVERS names (paths or names of binaries, or of scripts that
# exec one). Without SERVERS these are redis-server and valkey-server in PATH, and what fetch has
# brought. It fails if one of them does not exist, or if COMMAND fails with one of them.
#
# fetch needs Debian. It unpacks packages of unstable and experimental, with all libraries that
# they need, below .cache/servers, and installs nothing. Each server gets a script that runs
# it with the loader and the libraries of its folder. What is there already is not replaced.
set -eu

folder=$(cd "$(dirname "$0")/.." && pwd)/.cache/servers

say() { echo "servers.sh: $*" >&2; }

fail() {
	say "$*"
	exit 1
}

# find_servers prints the servers of this machine, one per line.
find_servers() {
	for name in redis-server valkey-server "$folder"/*/redis-server "$folder"/*/valkey-server; do
		command -v "$name" || true
	done
}

# run_all runs the command "$@" with each server, then prints a line per server.
run_all() {
	if [ -z "${SERVERS:-}" ]; then
		say 'SERVERS is not set: taking the servers of this machine. To choose them:'
		say '  SERVERS="/path/of/redis-server valkey-server"'
		say 'To bring newer ones on Debian: scripts/servers.sh fetch'
		SERVERS=$(find_servers)
		[ -n "$SERVERS" ] || fail "no redis-server and no valkey-server in PATH"
	fi
	for server in $SERVERS; do
		"$server" --version >&2 || fail "$server does not run"
	done
	scratch=$(mktemp -d)
	trap 'rm -rf "$scratch"' EXIT
	status=0
	for server in $SERVERS; do
		path=$(command -v "$server")
		title="$("$server" --version | sed 's/ sha=.*//'), $path"
		echo "== $title"
		{ REDIS_SERVER=$path "$@" 2>&1 && : >"$scratch/passed"; } | tee "$scratch/output"
		if [ -e "$scratch/passed" ]; then
			echo "passed: $title" >>"$scratch/summary"
		else
			status=1
			echo "FAILED: $title" >>"$scratch/summary"
			grep -E '^(--- )?FAIL' "$scratch/output" >>"$scratch/summary" || true
		fi
		rm -f "$scratch/passed"
	done
	echo "== summary"
	cat "$scratch/summary"
	return $status
}

# unpack puts the servers $2 of the Debian suite $1, and what they need, into the folder of $1.
# The third argument is a suite that may have what they need, if $1 has only parts.
unpack() {
	suite=$1 names=$2 base=${3:-} dir=$folder/$1
	[ ! -e "$dir" ] || return 0
	mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' | head -n 1)
	[ -n "$mirror" ] || fail "no Debian in the package sources (apt-get update may be due)"
	scratch=$(mktemp -d)
	trap 'rm -rf "$scratch"' EXIT
	mkdir -p "$scratch/lists/partial" "$scratch/cache/archives/partial" "$scratch/root"
	: >"$scratch/status" # nothing counts as installed, so that all libraries come
	for s in $suite $base; do
		echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $s main"
	done >"$scratch/sources.list"
	for command in update "install -t $suite --download-only --no-install-recommends $names"; do
		# shellcheck disable=SC2086 # words of a command
		apt-get -q -y -o Dir::Etc::sourcelist="$scratch/sources.list" -o Dir::Etc::sourceparts=/dev/null \
			-o Dir::State::lists="$scratch/lists" -o Dir::State::status="$scratch/status" \
			-o Dir::Cache="$scratch/cache" -o Acquire::Languages=none -o APT::Sandbox::User=root \
			-o Debug::NoLocking=1 $command >&2
	done
	for package in "$scratch"/cache/archives/*.deb; do
		dpkg -x "$package" "$scratch/root"
	done
	libraries=$(dirname "$(find "$scratch/root" -name libc.so.6 | head -n 1)")
	libraries=$dir/root${libraries#"$scratch/root"}
	loader=$(find "$scratch/root" -name 'ld-linux*.so.*' | head -n 1)
	loader=$dir/root${loader#"$scratch/root"}
	for name in $names; do
		cat >"$scratch/$name" <<-END
			#!/bin/sh
			exec '$loader' --argv0 $name --library-path '$libraries' '$dir/root/usr/bin/$name' "\$@"
		END
		chmod +x "$scratch/$name"
	done
	mkdir -p "$dir"
	mv "$scratch/root" "$dir/"
	for name in $names; do
		mv "$scratch/$name" "$dir/"
		"$dir/$name" --version >&2
	done
}

verb=${1:-}
[ $# -eq 0 ] || shift
case "$verb" in
run)
	[ $# -gt 0 ] || fail "run: no command"
	run_all "$@"
	;;
fetch)
	(unpack unstable "redis-server valkey-server")
	(unpack experimental redis-server unstable)
	ls "$folder"/*/*-server
	;;
*)
	fail "usage: servers.sh run COMMAND... | servers.sh fetch"
	;;
esac
