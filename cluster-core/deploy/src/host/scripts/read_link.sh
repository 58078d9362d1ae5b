# shellcheck shell=sh
# $1 base, $2 file.
head -c 1024 "$1/current/$2" 2>/dev/null || true
