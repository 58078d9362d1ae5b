# shellcheck shell=sh
# $1 host, $2 port. Exits with 3 when nothing is there to try it with.
if command -v bash >/dev/null 2>&1; then
  # shellcheck disable=SC2016 # expanded by bash
  timeout 5 bash -c 'exec 3<>"/dev/tcp/$0/$1"' "$1" "$2" 2>/dev/null || exit 1
elif command -v nc >/dev/null 2>&1; then nc -z -w 5 "$1" "$2" 2>/dev/null || exit 1
else exit 3; fi
