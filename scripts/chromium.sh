#!/bin/sh
# Prints the path of a Chromium for the tests of the chat's page, and installs one when there is
# none.
#
# It takes, in this order: CHROMIUM (path or name of a binary), chromium, chromium-browser or
# google-chrome in PATH, a package that apt-get, dnf or brew installs. With NO_INSTALL=1 it
# installs nothing. Everything that is for a person to read goes to standard error.
set -eu

say() { echo "chromium.sh: $*" >&2; }

fail() {
	say "$*"
	say "Install Chromium or Chrome:"
	say "  Debian:  sudo apt-get install chromium"
	say "  Ubuntu:  Chrome from google.com/chrome (its package chromium is a snap)"
	say "  Fedora:  sudo dnf install chromium"
	say "  macOS:   brew install --cask chromium   (or google-chrome)"
	say "or set CHROMIUM to the path of a browser."
	exit 1
}

# find_browser prints the first browser in PATH, or where macOS keeps it.
find_browser() {
	PATH="$PATH:/usr/local/bin:/usr/bin:/opt/homebrew/bin"
	for name in chromium chromium-browser google-chrome google-chrome-stable \
		"/Applications/Google Chrome.app/Contents/MacOS/Google Chrome" \
		/Applications/Chromium.app/Contents/MacOS/Chromium; do
		# On Ubuntu chromium-browser may be a script that only asks for the snap.
		if path=$(command -v "$name") && version "$path" >/dev/null; then
			echo "$path"
			return
		fi
	done
	return 1
}

version() { "$1" --version 2>/dev/null | grep -E '[0-9]+\.[0-9]+'; }

# as_root runs a command with the rights that a package manager needs.
as_root() {
	if [ "$(id -u)" -eq 0 ]; then
		"$@"
	elif command -v sudo >/dev/null && { [ -t 0 ] || sudo -n true 2>/dev/null; }; then
		sudo "$@"
	else
		fail "no Chromium, and neither root nor sudo to install one"
	fi
}

install_browser() {
	if command -v apt-get >/dev/null; then
		say "no Chromium: installing it by apt-get"
		as_root apt-get update -q
		as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends chromium
	elif command -v dnf >/dev/null; then
		say "no Chromium: installing it by dnf"
		as_root dnf install -y chromium
	elif command -v brew >/dev/null; then
		say "no Chromium: installing it by brew"
		brew install --cask chromium
	else
		fail "no Chromium, and no package manager that this script knows"
	fi
}

if [ -n "${CHROMIUM:-}" ]; then
	browser=$(command -v "$CHROMIUM") || fail "CHROMIUM=$CHROMIUM does not exist"
elif browser=$(find_browser); then
	:
elif [ "${NO_INSTALL:-}" = 1 ]; then
	fail "no Chromium"
else
	install_browser >&2 || fail "the installation failed"
	browser=$(find_browser) || fail "the installation has brought no Chromium that starts"
fi
say "$browser, $(version "$browser" || echo 'which does not tell its version')"
echo "$browser"
