# shellcheck shell=sh
# $1 base, $2 reference, $3 length of the configuration, which standard input begins with. It lies in
# memory where the host has a place for that, and goes with this script, however that ends: the end of
# standard input is the end of the connection, and ends the pull. Without a terminal nothing else would.
note_work "$1"
config=
for parent in /dev/shm /run /tmp; do
  [ -w "$parent" ] && config=$(mktemp -d "$parent/aegis-login.XXXXXXXX" 2>/dev/null) && break
done
[ -n "$config" ] || { echo "there is no directory for a temporary file" >&2; exit 1; }
trap 'rm -rf -- "$config"' EXIT
trap 'exit 143' HUP INT TERM PIPE
head -c "$3" > "$config/config.json"
[ "$(wc -c < "$config/config.json")" -eq "$3" ] || { echo "the login was cut off on its way" >&2; exit 1; }
exec 3<&0
docker --config "$config" pull -q "$2" 3<&- </dev/null &
pull=$!
{ cat <&3; rm -rf -- "$config"; kill "$pull"; } >/dev/null 2>&1 &
watcher=$!
exec 3<&-
wait "$pull"
status=$?
kill "$watcher" 2>/dev/null
exit "$status"
