#!/usr/bin/env bash
# Answers the questions of both sample manifests and shows the answers; fails if one is not right.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p out

answer() { # manifest, model, output
    echo "\$ vlmbatch run $1 -m $2 -o $3 --overwrite"
    local status=0
    "$VLMBATCH" run "$1" -m "$2" -o "$3" --overwrite || status=$?
    echo
    "$PYTHON" samples/show_answers.py "$1" "$3" --exit-status "$status"
}

answer samples/manifest.jsonl samples/tiny-llava out/demo.parquet
echo
answer samples/manifest-qwen-vl.jsonl samples/tiny-qwen-vl out/demo-qwen-vl.parquet
