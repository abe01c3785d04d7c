#!/bin/sh
# Print where Chromium is, which the tests of the console drive: CHROMIUM, or one on PATH. Where there is none, and this is Debian and
# one is root, it is installed by apt-get. Nothing else downloads a browser.
set -eu

runs() {
    found=$(command -v "$1") && "$found" --version >/dev/null 2>&1
}

find_it() {
    for name in ${CHROMIUM:-} chromium chromium-browser google-chrome google-chrome-stable; do
        if runs "$name"; then
            echo "$found"
            exit
        fi
    done
}

stop() {
    echo "browser: $*; install Chromium so that it is on PATH (Debian: apt-get install chromium), or name it by CHROMIUM=/path/to/chrome" >&2
    exit 1
}

find_it
[ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || stop "the tests of the console need Chromium, and none is on PATH"
echo "browser: the tests of the console need Chromium: apt-get install chromium" >&2
export DEBIAN_FRONTEND=noninteractive
apt-get -qq install -y --no-install-recommends chromium >/dev/null 2>&1 ||
    { apt-get -qq update && apt-get -qq install -y --no-install-recommends chromium; } >/dev/null 2>&1 ||
    stop "apt-get could not install Chromium"
find_it
stop "what apt-get installed as chromium does not run"
