# shellcheck shell=sh
# $1 base, $2 deployment, then pairs of a path in the release and where it leads to.
set -e
cd -- "$1/releases/$2"
shift 2
while [ $# -gt 1 ]; do
  case "$1" in */*) mkdir -p -- "${1%/*}";; esac
  ln -sfn -- "$2" "$1"
  shift 2
done
