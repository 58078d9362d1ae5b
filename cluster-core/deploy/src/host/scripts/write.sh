# shellcheck shell=sh
# $1 path, $2 length: what was cut off on the way never takes the file's place. What is made by sudo
# belongs to the login's user, who runs the link, and as whom the node runs.
set -e
cat > "$1.new"
[ "$(wc -c < "$1.new")" -eq "$2" ]
# shellcheck disable=SC2153 # sudo sets both
[ -z "${SUDO_UID:-}" ] || chown -- "$SUDO_UID:$SUDO_GID" "$1.new"
sync -- "$1.new" 2>/dev/null || sync
mv -f -- "$1.new" "$1"
