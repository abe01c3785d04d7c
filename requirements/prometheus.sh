#!/bin/sh
# Print where promtool is: on PATH, or taken out of Debian's package into .venv/deploy: nothing is installed, no server is started.
set -eu
cd "$(dirname "$0")/.."
kept=$PWD/.venv/deploy/promtool

if [ -x "$kept" ]; then
    echo "$kept"
    exit
fi
if command -v promtool; then
    exit
fi

stop() {
    echo "promtool: $*; install Prometheus (Debian: apt-get install prometheus) so that promtool is on PATH" >&2
    exit 1
}

command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || stop "not on PATH, and this is no Debian"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
(
    cd "$folder"
    apt-get -qq download prometheus >/dev/null 2>&1 ||
        { [ "$(id -u)" = 0 ] && apt-get -qq update >/dev/null 2>&1 && apt-get -qq download prometheus >/dev/null 2>&1; }
) || stop "not on PATH, and apt-get could not download it"
dpkg-deb --fsys-tarfile "$folder"/prometheus_*.deb | tar -x -C "$folder" ./usr/bin/promtool ||
    stop "Debian's package has it no longer"
mkdir -p "$(dirname "$kept")"
# At once whole, whoever else is at this.
mv "$folder/usr/bin/promtool" "$kept.$$"
mv "$kept.$$" "$kept"
echo "$kept"
