# shellcheck shell=sh
# $1 image id, $2 reference.
docker image inspect "$1" >/dev/null 2>&1 && docker tag "$1" "$2"
