# shellcheck shell=sh
for image in "$@"; do docker image rm "$image" >/dev/null 2>&1; done; true
