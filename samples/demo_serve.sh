#!/usr/bin/env bash
# Starts the server with the sample model, asks it one question with curl, and stops it.
set -euo pipefail
cd "$(dirname "$0")/.."
vlmbatch=${VLMBATCH:-vlmbatch}
image=samples/images/1001000001.jpg
question="What number is written?"

folder=$(mktemp -d)
echo "\$ vlmbatch serve -m samples/tiny-llava --port 0"
"$vlmbatch" serve -m samples/tiny-llava --port 0 2> "$folder/log" &
server=$!
trap 'kill "$server" 2> /dev/null || true; rm -rf "$folder"' EXIT
until url=$(grep -o 'http://[0-9.:]*' "$folder/log"); do
    kill -0 "$server" 2> /dev/null || { cat "$folder/log" >&2; exit 1; }
    sleep 0.1
done
cat "$folder/log"

cat > "$folder/request.json" << END
{"model": "samples/tiny-llava", "temperature": 0, "messages": [{"role": "user", "content": [
    {"type": "text", "text": "$question"},
    {"type": "image_url", "image_url":
        {"url": "data:image/jpeg;base64,$(base64 < "$image" | tr -d '\n')"}}]}]}
END
echo
echo "\$ curl $url/v1/chat/completions ...   # $question ($image)"
curl -sS --fail-with-body "$url/v1/chat/completions" \
    -H "Content-Type: application/json" -d @"$folder/request.json"
echo
kill "$server"
wait "$server"
