# shellcheck shell=sh
# $1 project, $2 format, $3 base, then images.
stack_containers "$1" "$2" || exit 1
current=$(readlink "$3/current" 2>/dev/null)
[ -z "$current" ] || printf 'current=%s\n' "${current#releases/}"
shift 3
for image in "$@"; do id=$(docker image inspect -f '{{.Id}}' "$image" 2>/dev/null) && printf 'image=%s %s\n' "$id" "$image"; done
true
