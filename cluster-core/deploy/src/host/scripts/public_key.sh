# shellcheck shell=sh
# $1 base.
head -c 200 "$1/run/node.pub" 2>/dev/null
