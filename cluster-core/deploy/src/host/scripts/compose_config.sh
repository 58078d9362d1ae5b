# shellcheck shell=sh
# $1 project, $2 directory in the stream, $3 last entry of the stream, $4 file of the variables, $5 a marker,
# $6 profiles, $7 the second compose file or nothing, then services. Standard input is a tar stream of what Compose
# opens. Prints, each after a line with the marker: the directory above and the project's own, all services, all
# profiles, the project as JSON, Compose's warnings and errors, its exit status. Prints nothing where the host has no
# Compose. The files may hold secrets: they lie in memory where the host has such a directory, and go at the end.
project=$1; stream=$2; complete=$3; variables=$4; marker=$5; profiles=$6; second=$7; shift 7
docker compose version --short >/dev/null 2>&1 || exit 0
top=
for place in "${XDG_RUNTIME_DIR:-}" /dev/shm "${TMPDIR:-}" /tmp; do
  [ -n "$place" ] && [ -d "$place" ] && top=$(mktemp -d "$place/aegis-compose.XXXXXX" 2>/dev/null) && break
done
[ -n "$top" ] || { echo "no directory can be made in /dev/shm or /tmp" >&2; exit 1; }
trap 'rm -rf -- "$top"' EXIT
trap 'exit 1' HUP INT TERM
top=$(cd -- "$top" && pwd -P) || exit 1
# A path that leads out of the project stays below the directory above it.
above=$top/1/2/3/4/5/6/7/8
mkdir -p -- "$above" && cd -- "$above" || exit 1
tar -x -o -f - || exit 1
[ -f "$complete" ] || { echo "the stream of files was cut" >&2; exit 1; }
cd -- "$stream" || exit 1
directory=$above/$stream
compose() {
  env -i PATH="$PATH" HOME="$HOME" DOCKER_CONTEXT=default PWD="$directory" COMPOSE_PROFILES="$profiles" docker compose -p "$project" \
    --project-directory "$directory" --env-file "$directory/$variables" -f "$directory/docker-compose.yml" \
    ${second:+-f "$directory/$second"} "$@"
}
compose --profile '*' config --services >"$top/services" 2>/dev/null &
compose --profile '*' config --profiles >"$top/profiles" 2>/dev/null &
compose config --format json "$@" >"$top/json" 2>"$top/stderr"
status=$?
wait
printf '%s\n%s\n%s\n' "$marker" "$top" "$directory"
for part in services profiles json stderr; do printf '%s\n' "$marker"; cat "$top/$part"; echo; done
printf '%s\n%s\n' "$marker" "$status"
