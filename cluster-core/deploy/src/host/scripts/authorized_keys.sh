# shellcheck shell=sh
# $1 owner, $2 node, $3 options of the line, $4 public key, $5 the command's file. With $4 empty the line
# and the file are taken away.
#
# Several hosts may share the home directory, and other programs edit the same file. So nothing is written
# when nothing has to change; a change is made under a lock, in a new file that takes the old one's place,
# and only while the lines of others are what they were. Lines that an earlier version wrote bear the
# owner's name alone: all nodes of the owner share the key, so the line of any node replaces those.
set -e
directory="$HOME/.ssh"; keys="$directory/authorized_keys"; script="$directory/aegis-link-$1-$2"
mark=" aegis link of $1 node $2"; earlier=" aegis link of $1"; earlier_script="$directory/aegis-link-$1"
line=
[ -z "$4" ] || line="$3,command=\"sh '$script'\" $4$mark"
fresh=
trap '[ -z "$fresh" ] || rm -f -- "$fresh"' EXIT
fail() { echo "$1" >&2; exit 1; }

# $1 "ours" or "others", $2 file: those lines of it.
lines() {
  [ -e "$2" ] || return 0
  want=$1 mark=$mark earlier=$earlier awk '
    function ends(text, end) {
      return end != "" && length(text) >= length(end) && substr(text, length(text) - length(end) + 1) == end
    }
    (ends($0, ENVIRON["mark"]) || ends($0, ENVIRON["earlier"])) == (ENVIRON["want"] == "ours")' "$2"
}
is_done() {
  [ "$(lines ours "$keys")" = "$line" ] || return 1
  if [ -z "$line" ]; then [ ! -e "$script" ]; else printf '%s' "$5" | cmp -s -- - "$script"; fi
}
# A line of an earlier version stays for other nodes where this node has a line of its own.
choose_lines() {
  if [ -z "$line" ] && { [ -e "$script" ] || [ ! -e "$earlier_script" ]; }; then earlier=; fi
}
# $1 file that is replaced. The new file has its mode and owner.
make_fresh() {
  fresh=$(mktemp "${1%/*}/.aegis-link.XXXXXX")
  [ ! -e "$1" ] || cp -p -- "$1" "$fresh"
}
replace() {
  sync -- "$fresh" 2>/dev/null || sync
  mv -f -- "$fresh" "$1"
  fresh=
}

choose_lines
if is_done "$@"; then exit 0; fi
[ -z "$line" ] || [ -d "$directory" ] || mkdir -m 700 -- "$directory" || [ -d "$directory" ]

# Held until this script ends. The holder before may have removed the file: a lock on it protects nothing.
lock="$directory/.aegis-link.lock"; tries=0
while :; do
  exec 9>>"$lock"
  until flock -n 9; do
    tries=$((tries + 1)); [ "$tries" -lt 150 ] || fail "$lock is held by another process"
    sleep 0.1
  done
  [ "$(stat -L -c %i /proc/self/fd/9)" != "$(stat -c %i -- "$lock" 2>/dev/null)" ] || break
done
trap '[ -z "$fresh" ] || rm -f -- "$fresh"; rm -f -- "$lock"' EXIT
choose_lines

if [ -n "$line" ] && ! printf '%s' "$5" | cmp -s -- - "$script"; then
  make_fresh "$script"
  printf '%s' "$5" > "$fresh"
  replace "$script"
fi
# A file that is kept elsewhere stays there.
file=$(readlink -f -- "$keys")
tries=0
while [ "$(lines ours "$file")" != "$line" ]; do
  tries=$((tries + 1)); [ "$tries" -le 20 ] || fail "$file is changed by another program all the time"
  before=$(cat -- "$file" 2>/dev/null | sha256sum)
  make_fresh "$file"
  lines others "$file" > "$fresh"
  [ -z "$line" ] || printf '%s\n' "$line" >> "$fresh"
  if [ -e "$file" ]; then
    [ "$(stat -c '%u %g %a' -- "$fresh")" = "$(stat -c '%u %g %a' -- "$file")" ] || fail "$file belongs to another user"
    if [ "$(lines others "$fresh" | sha256sum)" != "$(lines others "$file" | sha256sum)" ]; then fail "a copy of $file is not complete"; fi
  fi
  if [ "$(cat -- "$file" 2>/dev/null | sha256sum)" = "$before" ]; then replace "$file"; else rm -f -- "$fresh"; fresh=; fi
done
[ -n "$line" ] || rm -f -- "$script"
[ -z "$earlier" ] || rm -f -- "$earlier_script"
