# shellcheck shell=sh
# $1 base, $2 deployment, $3 the last entry of the stream, then paths of writable roots that the host lacks: their
# first content. What is there by now is never replaced.
set -e
cd -- "$1"
part=".data/.$2.part"; last=$3
shift 3
rm -rf -- "$part"; mkdir -m 700 -- "$part"
tar -x -p -o -f - -C "$part"
[ -f "$part/$last" ]
# shellcheck disable=SC2153 # sudo sets both
[ "$(id -u)" != 0 ] || [ -z "${SUDO_UID:-}" ] || chown -R -- "$SUDO_UID:$SUDO_GID" "$part" .data
for path in "$@"; do
  if [ -e ".data/$path" ] || [ -L ".data/$path" ]; then continue; fi
  case "$path" in */*) (umask 077 && mkdir -p -- ".data/${path%/*}");; esac
  mv -- "$part/$path" ".data/$path"
done
rm -rf -- "$part"
sync
