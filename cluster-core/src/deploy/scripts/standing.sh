# shellcheck shell=sh
# $1 base, $2 release, $3 its note.
current=$(readlink "$1/current" 2>/dev/null)
[ -z "$current" ] || printf 'current=%s\n' "${current#releases/}"
[ ! -f "$1/releases/$2/$3" ] || echo complete=yes
