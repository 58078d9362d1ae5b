# shellcheck shell=sh
# $1 base, $2 deployment, $3 project.
#
# Before the first change, `.aegis-before` gets what stands here: `file NAME` for each entry, and
# `ran DIRECTORY|COMPOSE FILES|SERVICE` for each container of the project that runs. Only that note decides
# what a removal, or a failed first deployment, restores.
set -e
cd -- "$1"
if [ ! -e releases ] && ! grep -qx seen .aegis-before 2>/dev/null; then
  ran=$(docker ps --filter "label=com.docker.compose.project=$3" --filter label=com.docker.compose.oneoff=False --format \
    'ran {{.Label "com.docker.compose.project.working_dir"}}|{{.Label "com.docker.compose.project.config_files"}}|{{.Label "com.docker.compose.service"}}')
  {
    if [ -e .aegis-before ]; then cat .aegis-before; fi
    for file in * .[!.]*; do
      case "$file" in .lock|.lock.owner|.lock.beat|.work|.aegis-before*) continue;; esac
      # Data of an earlier deployment.
      if [ "$file" = .data ] && [ -e .data/.aegis ]; then continue; fi
      if [ -e "$file" ] || [ -L "$file" ]; then printf 'file %s\n' "$file"; fi
    done
    [ -z "$ran" ] || printf '%s\n' "$ran"
    echo seen
  } > .aegis-before.new
  sync -- .aegis-before.new 2>/dev/null || sync
  mv -f -- .aegis-before.new .aegis-before
fi
for directory in releases run; do
  [ -d "$directory" ] || mkdir -m 700 -- "$directory"
done
# shellcheck disable=SC2153 # sudo sets both
[ "$(id -u)" != 0 ] || [ -z "${SUDO_UID:-}" ] || chown -- "$SUDO_UID:$SUDO_GID" releases run
current=$(readlink current 2>/dev/null || true)
if [ "$current" != "releases/$2" ]; then
  rm -rf -- "releases/$2"; mkdir -m 700 -- "releases/$2"
  [ "$(id -u)" != 0 ] || [ -z "${SUDO_UID:-}" ] || chown -- "$SUDO_UID:$SUDO_GID" "releases/$2"
fi
