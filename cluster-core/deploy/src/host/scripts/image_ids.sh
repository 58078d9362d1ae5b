# shellcheck shell=sh
for image in "$@"; do id=$(docker image inspect -f '{{.Id}}' "$image" 2>/dev/null) && printf '%s %s\n' "$id" "$image"; done; true
