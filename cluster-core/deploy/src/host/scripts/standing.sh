# shellcheck shell=sh
# $1 base, $2 release, $3 its note, $4 project. Containers are looked for where there is no release.
current=$(readlink "$1/current" 2>/dev/null)
if [ -n "$current" ]; then printf 'current=%s\n' "${current#releases/}"
else
  docker ps -aq --filter "label=com.docker.compose.project=$4" --filter label=com.docker.compose.oneoff=False | sed 's/^/container=/'
fi
[ ! -f "$1/releases/$2/$3" ] || echo complete=yes
