# shellcheck shell=sh
# $1 base.
end_work "$1"
rm -f -- "$1/.work"
