# shellcheck shell=sh
# $1 base. The end of standard output is the end of the file or 1 MiB.
head -c 1048576 "$1/.env" 2>/dev/null; true
