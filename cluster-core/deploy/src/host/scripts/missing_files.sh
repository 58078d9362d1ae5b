# shellcheck shell=sh
# $1 base, then digests: says which of them the host has no content of.
cd -- "$1/releases" || exit 1
shift
for digest in "$@"; do [ -e ".files/$digest" ] || printf '%s\n' "$digest"; done
