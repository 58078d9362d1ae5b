# shellcheck shell=sh
# Functions that scripts share; this text stands before each of them. See `scripts.rs`.

# One engine for all commands, that of the default socket, which the node has as well: neither variables nor the
# context that `docker context use` has chosen count.
unset DOCKER_HOST DOCKER_TLS_VERIFY DOCKER_CERT_PATH DOCKER_API_VERSION
DOCKER_CONTEXT=default; export DOCKER_CONTEXT

# Ends the process group that `.work` under $1 names, and waits for its end. The leader is told from a later
# process of the same number by its start time.
end_work() {
  group=; begun=
  read -r group begun < "$1/.work" 2>/dev/null
  case "$group" in ''|0|1|*[!0-9]*) group=;; esac
  if [ -n "$group" ] && [ -n "$begun" ]; then
    alive() { [ "$(sed 's/^.*) //' "/proc/$group/stat" 2>/dev/null | cut -d' ' -f20)" = "$begun" ]; }
    if alive; then
      kill -- "-$group" 2>/dev/null
      n=0; while alive && [ $n -lt 100 ]; do n=$((n + 1)); sleep 0.1; done
      if alive; then kill -9 -- "-$group" 2>/dev/null; fi
    fi
  fi
}

# Notes the process group of a script that changes something, in `.work` under $1: the next holder of the
# lock ends that group, should it outlive its connection.
note_work() {
  group=$(sed 's/^.*) //' "/proc/$$/stat" | cut -d' ' -f3)
  rm -f -- "$1/.work"
  printf '%s %s\n' "$group" "$(sed 's/^.*) //' "/proc/$group/stat" | cut -d' ' -f20)" > "$1/.work"
}

# $1 project, $2 format. The host's clock, then a line a container. A container that goes away in between
# is left out.
stack_containers() {
  printf 'now %s\n' "$(date +%s)"
  containers=$(docker ps -aq --no-trunc --filter "label=com.docker.compose.project=$1" --filter label=com.docker.compose.oneoff=False) || return 1
  # shellcheck disable=SC2086 # ids, one a word
  [ -z "$containers" ] || docker inspect --format "$2" $containers || :
}
