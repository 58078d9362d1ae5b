# shellcheck shell=sh
# $1 base, $2 release, $3 note. Cut where it is larger than any that is written.
head -c 1000000 "$1/releases/$2/$3" | tr -d '\n\r'
