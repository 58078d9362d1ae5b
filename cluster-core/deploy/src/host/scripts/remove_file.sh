# shellcheck shell=sh
# $1 path.
rm -f -- "$1"
