# shellcheck shell=sh
# $1 base, $2 reference.
note_work "$1"
docker pull -q "$2"
