#!/bin/sh
# A job and a bulk with nothing but curl: sh examples/curl.sh
set -eu
url=${STOKER_URL:-http://127.0.0.1:8000}
key=${STOKER_API_KEY:-none}

ask() { # ask PATH [CURL'S OPTIONS]
    path=$1 && shift
    curl --silent --show-error --fail-with-body --header "Authorization: Bearer $key" "$@" "$url$path"
}
field() { # the first member of that name in the JSON on the standard input
    sed -n "s/^[^}]*\"$1\": *\"\([^\"]*\)\".*/\1/p" | head -n 1
}

echo '--- a job'
job=$(ask /v1/jobs --json '{"prompt": "What is the capital of France?", "max_tokens": 40}' | field id)
ask "/v1/jobs/$job?wait=60" > /dev/null            # held until it has ended
ask "/v1/jobs/$job/result"
echo

echo '--- a bulk'
bulk=$(printf '%s\n' '{"custom_id": "a", "prompt": "Say one."}' '{"custom_id": "b", "prompt": "Say two."}' |
    ask '/v1/bulks?max_tokens=10' --header 'Content-Type: application/x-ndjson' --data-binary @- | field id)
while :; do
    case $(ask "/v1/bulks/$bulk" | field state) in
        completed | failed | expired | cancelled) break ;;
        '') exit 1 ;; # no answer: curl has said why
    esac
    sleep 0.5
done
ask "/v1/bulks/$bulk/results"
