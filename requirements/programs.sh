#!/bin/sh
# Install what the tests run and this machine lacks, where this is Debian and one is root. Elsewhere nothing is done: the tests that
# need a program say so.
set -u
missing=
for one in curl:curl systemd-analyze:systemd; do
    command -v "${one%%:*}" >/dev/null || missing="$missing ${one##*:}"
done
if [ -n "$missing" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "programs: the tests need them: apt-get install$missing" >&2
    export DEBIAN_FRONTEND=noninteractive
    { apt-get -qq install -y --no-install-recommends $missing ||
        { apt-get -qq update && apt-get -qq install -y --no-install-recommends $missing; }; } >/dev/null 2>&1 ||
        echo "programs: apt-get could not install$missing" >&2
fi
sh "$(dirname "$0")/browser.sh" >/dev/null || true
