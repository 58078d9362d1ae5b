# shellcheck shell=sh
# $1 base, $2 project, $3 "volumes" or empty, $4 "files" to leave all containers alone, or empty.
#
# Data of containers (`.data`) stays as their volumes do, unless volumes are removed.
#
# What Compose leaves, because a file of it is gone or a profile is not named, is found by its labels. Agents'
# containers go with the node whose label they bear. What stood here before the first deployment comes back,
# and a stack that ran then is started again, by the note `.aegis-before`.
note_work "$1"
[ -d "$1" ] || exit 0
cd -- "$1" || exit 1
base=$1; project=$2; volumes=$3; only=$4
noted=; made=; ran=
if [ -e .aegis-before ]; then
  noted=yes
  made=$(sed -n 's/^made //p' .aegis-before)
  ran=$(sed -n 's/^ran //p' .aegis-before)
fi
stood_here() { grep -qxF -- "file $1" .aegis-before 2>/dev/null; }
compose() { env -i PATH="$PATH" HOME="$HOME" DOCKER_CONTEXT=default PWD="$(pwd -P)" docker compose -p "$project" "$@"; }
of="label=com.docker.compose.project=$project"

if [ "$only" != files ]; then
  [ ! -e current/release.json ] || relink
  node=$(sed -n 's/^AEGIS_NODE_ID="\(.*\)"$/\1/p' current/.env 2>/dev/null)
  images=$(sed -n 's/^AEGIS_NODE_IMAGE="\(.*\)"$/\1/p' releases/*/.env 2>/dev/null | sort -u)
  if is_ours docker-compose.yml && [ -e docker-compose.yml ]; then
    compose down --remove-orphans ${volumes:+-v} || exit 1
  fi
  for id in $(docker ps -aq --filter "$of"); do docker rm -f "$id" >/dev/null || exit 1; done
  if [ -n "$node" ]; then
    for id in $(docker ps -aq --filter "label=aegis.node_id=$node"); do docker rm -f "$id" >/dev/null || exit 1; done
  fi
  for id in $(docker network ls -q --filter "$of"); do docker network rm "$id" >/dev/null || exit 1; done
  if [ -n "$volumes" ]; then
    for id in $(docker volume ls -q --filter "$of"); do docker volume rm "$id" >/dev/null || exit 1; done
  fi
  for image in $images; do docker image rm "$image" >/dev/null 2>&1; done
fi

for file in * .[!.]*; do
  if is_ours "$file"; then rm -f -- "$file"; fi
done
for kept in *.before-aegis .[!.]*.before-aegis; do
  if is_there "$kept"; then
    name=${kept%.before-aegis}
    if is_there "$name"; then keep_edited "$name"; fi
    mv -- "$kept" "$name" || exit 1
  fi
done
rm -rf -- current current.new
if [ -n "$volumes" ] && [ -e .data/.aegis ]; then rm -rf -- .data || exit 1; fi
stood_here releases || rm -rf -- releases
if stood_here run; then rm -f -- run/node.pub run/node.sock run/controller.sock run/link.session*; else rm -rf -- run; fi

# Compose files that are gone cannot be started; that is told.
if [ "$only" != files ] && [ -n "$ran" ]; then
  first=$(printf '%s\n' "$ran" | head -n 1)
  directory=${first%%|*}; files=${first#*|}; files=${files%%|*}
  services=$(printf '%s\n' "$ran" | sed 's/.*|//' | sort -u)
  set --
  while [ -n "$files" ]; do
    file=${files%%,*}
    [ "$files" = "$file" ] && files= || files=${files#*,}
    set -- "$@" -f "$file"
  done
  # shellcheck disable=SC2086 # names of services, one a word
  (cd -- "$directory" && compose --project-directory "$directory" "$@" up -d $services) || exit 1
fi

rm -rf -- .work .lock .lock.owner .lock.beat .aegis-before .aegis-before.new
cd / || exit 1
if [ -z "$noted" ]; then rmdir -- "$base" 2>/dev/null; fi
printf '%s\n' "$made" | sed '1!G;h;$!d' | while read -r directory; do
  [ -z "$directory" ] || rmdir -- "$directory" 2>/dev/null
done
true
