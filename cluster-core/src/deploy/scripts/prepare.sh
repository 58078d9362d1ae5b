# shellcheck shell=sh
# $1 base, $2 deployment.
set -e
cd -- "$1"
mkdir -p -m 700 releases run
# shellcheck disable=SC2153 # sudo sets both
[ "$(id -u)" != 0 ] || [ -z "${SUDO_UID:-}" ] || chown -- "$SUDO_UID:$SUDO_GID" releases run
current=$(readlink current 2>/dev/null || true)
if [ "$current" != "releases/$2" ]; then
  rm -rf -- "releases/$2"; mkdir -m 700 -- "releases/$2"
  [ "$(id -u)" != 0 ] || [ -z "${SUDO_UID:-}" ] || chown -- "$SUDO_UID:$SUDO_GID" "releases/$2"
fi
