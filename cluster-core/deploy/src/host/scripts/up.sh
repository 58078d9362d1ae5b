# shellcheck shell=sh
# $1 base, $2 project. The login's own variables must not win over .env, which also names the
# services; one that ran before and is not among them is taken away first, since it may hold a port.
# A key that no container of ours can have written is stale.
note_work "$1"
cd -- "$1" || exit 1
for path in current/docker-compose*.yml current/.env; do
  if [ "$(readlink -- "${path#current/}")" != "$path" ]; then
    echo "$1/${path#current/} is not the one of the release: it was replaced on the host; deploy again" >&2
    exit 1
  fi
done
known=$(docker ps -a --filter "label=com.docker.compose.project=$2" --filter label=com.docker.compose.oneoff=False \
  --format '{{.ID}} {{.Label "com.docker.compose.service"}} {{.Label "aegis.config_digest"}}')
printf '%s\n' "$known" | grep -q '^[^ ]* [^ ]* .' || rm -f run/node.pub run/node.sock
services=$(sed -n 's/^AEGIS_SERVICES="\([^"]*\)"$/\1/p' .env)
if [ -n "$services" ]; then
  [ -z "$known" ] || printf '%s\n' "$known" | while read -r id service rest; do
    case " $services " in *" $service "*) ;; *) docker stop "$id" >/dev/null; docker rm "$id" >/dev/null;; esac
  done
fi
# shellcheck disable=SC2086 # names of services, one a word
env -i PATH="$PATH" HOME="$HOME" DOCKER_CONTEXT=default PWD="$(pwd -P)" docker compose -p "$2" up -d --remove-orphans --no-build $services
