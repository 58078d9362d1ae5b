# shellcheck shell=sh
# One call where none is missing, as mostly.
docker image inspect "$@" >/dev/null 2>&1 || for image in "$@"; do docker image inspect "$image" >/dev/null 2>&1 || printf '%s\n' "$image"; done
