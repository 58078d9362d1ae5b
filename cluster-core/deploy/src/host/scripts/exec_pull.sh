# shellcheck shell=sh
# $1 base, $2 project, $3 service, $4 model.
cd -- "$1" && env -i PATH="$PATH" HOME="$HOME" DOCKER_CONTEXT=default PWD="$(pwd -P)" docker compose -p "$2" exec -T "$3" ollama pull "$4"
