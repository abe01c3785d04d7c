#!/bin/sh
# Write the .env of docker-compose.yml with new secrets: sh deploy/compose-env.sh gpu (or cpu, or upstream), and where else than
# to .env as a second word. Once: with other secrets the database refuses, and what was sealed with the old key is lost.
set -eu
file=${2:-.env}
case ${1-} in
    gpu | cpu | upstream) ;;
    *) echo "usage: $0 gpu|cpu|upstream [FILE]" >&2 && exit 2 ;;
esac

secret() {
    head -c 32 /dev/urandom | base64 | tr -d '\n'
}

# For its owner alone, and never over one that is there.
umask 077
set -C
if [ -e "$file" ]; then
    echo "$file is there already, with the secrets of what was started with it; another engine: COMPOSE_PROFILES=$1 in it" >&2
    exit 1
fi
{
    echo "# Which engine: gpu (vLLM on an NVIDIA GPU), cpu (vLLM's CPU build), upstream (servers that are there already)."
    echo "COMPOSE_PROFILES=$1"
    echo "POSTGRES_PASSWORD=$(secret | tr -dc 'A-Za-z0-9')"
    echo "# Keep a copy of this one, apart from the backups: docs/security.md."
    echo "STOKER_SECRET_KEY=$(secret | tr '+/' '-_')"
    echo "STOKER_WEBHOOK_SECRET=whsec_$(secret)"
    if [ "$1" = upstream ]; then
        echo "# host.docker.internal is this machine: a server there has to listen on Docker's bridge, not on 127.0.0.1 alone."
        echo "STOKER_UPSTREAMS=http://host.docker.internal:8080"
        echo "# The model of requests that name none, as the servers call it."
        echo "STOKER_MODEL_NAME=default"
    else
        echo "STOKER_MODEL=HuggingFaceTB/SmolLM2-135M-Instruct"
    fi
    echo "# STOKER_PORT=8000"
} >"$file"
echo "$file: keep a copy of it"
