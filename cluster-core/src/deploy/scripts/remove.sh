# shellcheck shell=sh
# $1 base, $2 project, $3 "volumes" or empty. What Compose leaves, because a
# file of it is gone or a profile is not named, is found by its labels. Agents' containers go with the
# node whose label they bear.
note_work "$1"
[ -d "$1" ] || exit 0
cd -- "$1" || exit 1
base=$1; project=$2; volumes=$3
node=$(sed -n 's/^AEGIS_NODE_ID="\(.*\)"$/\1/p' .env 2>/dev/null)
images=$(sed -n 's/^AEGIS_NODE_IMAGE="\(.*\)"$/\1/p' releases/*/.env 2>/dev/null | sort -u)
if [ -e docker-compose.yml ]; then
  env -i PATH="$PATH" HOME="$HOME" docker compose -p "$project" down --remove-orphans ${volumes:+-v} || exit 1
fi
of="label=com.docker.compose.project=$project"
for id in $(docker ps -aq --filter "$of"); do docker rm -f "$id" >/dev/null || exit 1; done
if [ -n "$node" ]; then
  for id in $(docker ps -aq --filter "label=aegis.node_id=$node"); do docker rm -f "$id" >/dev/null || exit 1; done
fi
for id in $(docker network ls -q --filter "$of"); do docker network rm "$id" >/dev/null || exit 1; done
if [ -n "$volumes" ]; then
  for id in $(docker volume ls -q --filter "$of"); do docker volume rm "$id" >/dev/null || exit 1; done
fi
for image in $images; do docker image rm "$image" >/dev/null 2>&1; done
for file in * .[!.]*; do
  if [ -L "$file" ]; then case "$(readlink -- "$file")" in current/*) rm -f -- "$file";; esac; fi
done
for kept in *.before-aegis .[!.]*.before-aegis; do
  if [ -e "$kept" ]; then mv -- "$kept" "${kept%.before-aegis}"; fi
done
rm -rf -- releases current current.new run
# A stack that lay here before us runs again.
if [ -e docker-compose.yml ]; then env -i PATH="$PATH" HOME="$HOME" docker compose -p "$project" up -d || exit 1; fi
rm -rf -- .work .lock .lock.owner
cd / && rmdir -- "$base" 2>/dev/null
true
