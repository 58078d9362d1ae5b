#!/bin/sh
# shellcheck shell=sh
# Stand-in for `docker`: keeps containers and images as files, records each call, and refuses a call that it
# does not know. Its state is found from its own path, since Compose is called with an empty environment.
#
#   calls              each call, one a line
#   unknown            calls that it refused; a test fails when there are any
#   containers/ID      project=, service=, node=, status=, config_digest=, image=
#   images             REFERENCE ID, one a line
#   used               ids of images that cannot be removed
#   directories        PWD in the environment of each call of Compose
#   fail               text before a space: the call that fails (`compose up`); after it: the error
state=$(dirname "$0")/../docker
printf '%s\n' "$*" >> "$state/calls"
# A shell sets its own PWD: what it was given stands in the file only.
[ "$1" != compose ] || tr '\0' '\n' < "/proc/$$/environ" | sed -n 's/^PWD=//p' >> "$state/directories"

refuse() { printf '%s\n' "$*" >> "$state/unknown"; echo "stand-in docker: unknown call: $*" >&2; exit 64; }
fails() {
  while read -r failing error; do
    if [ "$failing" = "$1" ]; then echo "$error" >&2; exit 1; fi
  done < "$state/fail"
}
field() { sed -n "s/^$2=//p" "$state/containers/$1"; }
# The label names that scripts may ask for.
label() {
  case "$2" in
    com.docker.compose.project) field "$1" project;;
    com.docker.compose.service) field "$1" service;;
    com.docker.compose.oneoff) echo False;;
    aegis.node_id) field "$1" node;;
    aegis.config_digest) field "$1" config_digest;;
    *) refuse "label $2";;
  esac
}
# $1 container, then filters.
matches() {
  container=$1; shift
  for filter in "$@"; do
    case "$filter" in
      label=*=*) name=${filter#label=}; value=${name#*=}; name=${name%%=*}
        [ "$(label "$container" "$name")" = "$value" ] || return 1;;
      status=*) [ "$(field "$container" status)" = "${filter#status=}" ] || return 1;;
      *) refuse "filter $filter";;
    esac
  done
}
containers() { for file in "$state/containers/"*; do [ -e "$file" ] && echo "${file##*/}"; done; }
known() { [ -e "$state/containers/$1" ] || { echo "Error: No such container: $1" >&2; exit 1; }; }
image_id() { awk -v name="$1" '$1 == name || $2 == name { print $2; exit }' "$state/images"; }

ps() {
  all=; quiet=; format=; filters=
  while [ $# -gt 0 ]; do
    case "$1" in
      -aq) all=1; quiet=1;; -a) all=1;; -q) quiet=1;; --no-trunc) ;;
      --filter) filters="$filters $2"; shift;;
      --format) format=$2; shift;;
      *) refuse "ps $1";;
    esac
    shift
  done
  for id in $(containers); do
    [ -n "$all" ] || [ "$(field "$id" status)" = running ] || continue
    # shellcheck disable=SC2086 # filters hold no spaces
    matches "$id" $filters || continue
    case "$quiet$format" in
      1) echo "$id";;
      'ran {{.Label "com.docker.compose.project.working_dir"}}|{{.Label "com.docker.compose.project.config_files"}}|{{.Label "com.docker.compose.service"}}')
        printf 'ran %s|%s|%s\n' "$(field "$id" dir)" "$(field "$id" files)" "$(field "$id" service)";;
      '{{.ID}} {{.Label "com.docker.compose.service"}} {{.Label "aegis.config_digest"}}')
        printf '%s %s %s\n' "$id" "$(field "$id" service)" "$(field "$id" config_digest)";;
      *) refuse "ps --format $format";;
    esac
  done
}

inspect() {
  [ "$1" = --format ] || refuse "inspect $*"
  case "$2" in '{"id":'*) ;; *) refuse "inspect $*";; esac
  shift 2
  for id in "$@"; do
    known "$id"
    printf '{"id":"%s","service":"%s","status":"%s","health":"","exit_code":0,"oom_killed":false,"restarts":0,"started_at":"","policy":"no","image":"%s"}\n' \
      "$id" "$(field "$id" service)" "$(field "$id" status)" "$(field "$id" image)"
  done
}

image() {
  verb=$1; shift
  case "$verb" in
    inspect)
      format=
      case "$1" in -f|--format) format=$2; shift 2;; esac
      for name in "$@"; do
        id=$(image_id "$name")
        [ -n "$id" ] || { echo "Error: No such image: $name" >&2; exit 1; }
        case "$format" in
          '') echo '[]';;
          '{{.Id}}') echo "$id";;
          '{"RootFS"'*) printf '{"RootFS":{"Layers":["%s"]},"Config":{}}\n' "$id";;
          *) refuse "image inspect --format $format";;
        esac
      done;;
    ls)
      [ "$*" = '--format {{.Repository}}:{{.Tag}} --filter reference=aegis-node:*' ] || refuse "image ls $*"
      awk '$1 ~ /^aegis-node:/ { print $1 }' "$state/images";;
    rm)
      [ $# -eq 1 ] || refuse "image rm $*"
      id=$(image_id "$1")
      [ -n "$id" ] || { echo "Error: No such image: $1" >&2; exit 1; }
      if grep -qxF "$id" "$state/used"; then echo "Error: conflict: image $1 is used by a container" >&2; exit 1; fi
      awk -v name="$1" '$1 != name && $2 != name' "$state/images" > "$state/images.new"
      mv "$state/images.new" "$state/images";;
    *) refuse "image $verb $*";;
  esac
}

compose() {
  if [ "$*" = 'version --short' ]; then echo 2.26.1; return; fi
  files=
  while :; do
    case "$1" in
      -p) project=$2; shift 2;;
      -f) files="$files${files:+,}$2"; [ -e "$2" ] || { echo "open $2: no such file or directory" >&2; exit 14; }; shift 2;;
      --project-directory) [ "$2" = "$PWD" ] || refuse "compose --project-directory $2"; shift 2;;
      --env-file) shift 2;;
      --profile) [ "$2" = '*' ] || refuse "compose --profile $2"; shift 2;;
      *) break;;
    esac
  done
  [ -n "$project" ] || refuse "compose $*"
  verb=$1; shift
  fails "compose-$verb"
  [ -n "$files" ] || [ -e docker-compose.yml ] || { echo "no configuration file provided: not found" >&2; exit 14; }
  case "$verb" in
    up) up "$@";;
    down)
      for id in $(containers); do [ "$(field "$id" project)" != "$project" ] || rm -f "$state/containers/$id"; done;;
    config)
      case "$1 $2" in
        '--services ') services;;
        '--profiles ') echo "$COMPOSE_PROFILES";;
        '--format json') shift 2
          # shellcheck disable=SC2012 # names of the tests' own
          printf '{"files": "%s", "services": "%s"}\n' "$(ls | tr '\n' ' ' | sed 's/ $//')" "$*";;
        *) refuse "compose config $*";;
      esac;;
    ps) [ "$*" = '-a --services' ] || refuse "compose ps $*"; services;;
    logs) cat "$state/logs";;
    exec) shift; [ "$2" = ollama ] || refuse "compose exec $*"; cat "$state/logs";;
    *) refuse "compose $verb $*";;
  esac
}
# Of the compose file in the working directory: keys that are indented by two spaces.
services() { sed -n '/^services:/,/^[a-z]/s/^  \([a-z0-9_-]*\):.*/\1/p' docker-compose.yml; }
up() {
  wanted=
  for word in "$@"; do
    case "$word" in -d|--remove-orphans|--no-build) ;; -*) refuse "compose up $word";; *) wanted="$wanted $word";; esac
  done
  for service in ${wanted:-$(services)}; do
    printf 'project=%s\nservice=%s\nstatus=running\ndir=%s\nfiles=%s\n' "$project" "$service" "$PWD" "${files:-$PWD/docker-compose.yml}" > "$state/containers/$project-$service"
    echo " Container $project-$service-1  Started" >&2
  done
}

verb=$1; shift
fails "$verb"
case "$verb" in
  version) echo 26.1.5;;
  info) echo "26.1.5|/var/lib/docker|{}|[]";;
  ps) ps "$@";;
  inspect) inspect "$@";;
  image) fails "image-$1"; image "$@";;
  tag)
    id=$(image_id "$1"); [ -n "$id" ] || exit 1
    awk -v name="$2" '$1 != name' "$state/images" > "$state/images.new"
    echo "$2 $id" >> "$state/images.new"; mv "$state/images.new" "$state/images";;
  load) [ "$1" = -q ] || refuse "load $*"; cat > /dev/null; echo "Loaded image";;
  pull) [ "$1" = -q ] || refuse "pull $*"; echo "$2 sha256:pulled-$2" >> "$state/images";;
  rm) [ "$1" != -f ] || shift; for id in "$@"; do known "$id"; rm -f "$state/containers/$id"; echo "$id"; done;;
  stop) for id in "$@"; do known "$id"; sed -i 's/^status=.*/status=exited/' "$state/containers/$id"; echo "$id"; done;;
  network | volume)
    case "$1" in ls) cat "$state/${verb}s";; rm) echo "$2";; *) refuse "$verb $*";; esac;;
  compose) compose "$@";;
  *) refuse "$verb $*";;
esac
