# shellcheck shell=sh
# $1 base, $2 release. The current release stays.
[ "$(readlink "$1/current")" = "releases/$2" ] || rm -rf -- "$1/releases/$2"
