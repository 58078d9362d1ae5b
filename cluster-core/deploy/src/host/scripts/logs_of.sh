# shellcheck shell=sh
# $1 base, $2 project, $3 lines, $4 since or empty, $5 bytes, then services. The last line is the status.
# shellcheck disable=SC2015 # either failure means that there is no stack
cd -- "$1" && [ -e docker-compose.yml ] || { echo "there is no stack in $1"; exit 1; }
project=$2; lines=$3; since=$4; bytes=$5; shift 5
compose() { env -i PATH="$PATH" HOME="$HOME" DOCKER_CONTEXT=default PWD="$(pwd -P)" docker compose -p "$project" "$@"; }
known=$(compose ps -a --services 2>&1) || { printf '%s\n' "$known"; exit 1; }
for service in "$@"; do
  # shellcheck disable=SC2086 # names, joined to one line
  printf '%s\n' "$known" | grep -qxF -- "$service" || { echo "there is no service $service, but" $known; exit 1; }
done
{
  compose logs --no-color --timestamps --tail "$lines" ${since:+--since "$since"} "$@" 2>&1
  printf '\n%s' "$?"
} | sed "s/$(printf '\033')\[[0-9;]*[A-Za-z]//g" | tail -c "$bytes"
