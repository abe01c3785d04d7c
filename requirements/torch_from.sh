#!/bin/sh
# Print where uv finds torch's CPU build, which PyPI does not have: a folder among the find-links that uv
# or pip is configured with, when it holds a wheel for this Python, and PyTorch's own index otherwise.
set -eu
version=${1#torch==}
tag=$(.uv/bin/python -c 'import sys; print("cp{}{}".format(*sys.version_info[:2]))')
links=${UV_FIND_LINKS:-${PIP_FIND_LINKS:-$(.uv/bin/python -m pip config get global.find-links 2>/dev/null || true)}}
for folder in $(echo "$links" | tr ',' ' '); do
    folder=${folder#file://}
    for wheel in "$folder/torch-$version-$tag-"*.whl; do
        if [ -e "$wheel" ]; then
            echo "--find-links $folder"
            exit
        fi
    done
done
echo "--torch-backend cpu"
