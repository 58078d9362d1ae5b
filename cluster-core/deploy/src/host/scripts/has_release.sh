# shellcheck shell=sh
# $1 base, $2 deployment.
[ -f "$1/releases/$2/release.json" ]
