# shellcheck shell=sh
# $1 base.
note_work "$1"
docker load -q
