#!/bin/sh
# Check what `make setup` cannot put into .venv itself, and say in one line what to do: PYTHON BACKEND.
set -eu
python=$1
backend=$2

stop() {
    echo "make setup: $*" >&2
    exit 1
}

command -v "$python" >/dev/null 2>&1 ||
    stop "no $python here: apt-get install python3 python3-venv (Python 3.11, 3.12 or 3.13)"
"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' ||
    stop "$("$python" --version) is not 3.11, 3.12 or 3.13: install one, then make setup PYTHON=python3.13"
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    stop "$python has no venv: apt-get install python3-venv"

# vLLM's CPU build links this one library of the system, and a minimal Debian does not have it.
if [ "$backend" = cpu ] && ! "$python" -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        echo "make setup: vLLM on the CPU needs libnuma1: apt-get install libnuma1"
        apt-get -qq install -y libnuma1 >/dev/null 2>&1 ||
            { apt-get -qq update && apt-get -qq install -y libnuma1 >/dev/null; } ||
            stop "that failed: install libnuma1 by hand"
    else
        stop "vLLM on the CPU needs libnuma: apt-get install libnuma1 (as root)"
    fi
fi
