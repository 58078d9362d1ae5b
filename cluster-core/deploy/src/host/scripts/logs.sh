# shellcheck shell=sh
# $1 base, $2 project, $3 service, $4 lines. Escape sequences, of which Compose adds its own, go whole.
cd -- "$1" && env -i PATH="$PATH" HOME="$HOME" DOCKER_CONTEXT=default PWD="$(pwd -P)" docker compose -p "$2" logs --no-color --no-log-prefix --tail "$4" "$3" 2>&1 | sed "s/$(printf '\033')\[[0-9;]*[A-Za-z]//g"
