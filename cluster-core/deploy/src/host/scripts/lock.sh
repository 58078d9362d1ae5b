# shellcheck shell=sh
# $1 base, $2 deployment, $3 who, $4 seconds to wait, $5 seconds without a beat after which a holder counts
# as dead. Standard input stays open while the lock is held, and brings a line every few seconds: the lease.
# A connection that is cut without a word sends none, though sshd may keep its processes for hours.
#
# `.work` names the process group of the last script that changed something: it may outlive its connection.
# Directories that are made here are noted in `.aegis-before`, for the removal.

# Makes the base directory, and what lacks above it with the usual mode.
make_base() {
  made=; missing=$1
  while [ ! -e "$missing" ] && [ -n "$missing" ]; do
    made="made $missing
$made"
    missing=${missing%/*}
  done
  [ -n "$made" ] || return 0
  (umask 022; mkdir -p -- "${1%/*}/") || return 1
  mkdir -m 700 -- "$1" 2>/dev/null || [ -d "$1" ] || return 1
  # shellcheck disable=SC2153 # sudo sets both
  [ "$(id -u)" != 0 ] || [ -z "${SUDO_UID:-}" ] || chown -- "$SUDO_UID:$SUDO_GID" "$1"
}
# Reads who holds the lock: pid, since, holder.
read_holder() {
  pid=0; since=; holder=
  read -r pid since holder < "$1/.lock.owner" || true
  case "$pid" in ''|*[!0-9]*) pid=0;; esac
}
# Whether the holder sent beats and sends no more.
is_stale() {
  [ "$(cat "$1/.lock.beat" 2>/dev/null)" = "$pid" ] || return 1
  beat=$(stat -c %Y -- "$1/.lock.beat" 2>/dev/null) || return 1
  [ $(($(date +%s) - beat)) -gt "$2" ]
}
# Ends the noted process, if it still is the holder of $1, with its children.
end_holder() {
  if [ "$pid" -gt 1 ] && tr '\0' ' ' < "/proc/$pid/cmdline" 2>/dev/null | grep -qF "${1%% *}"; then
    # shellcheck disable=SC2046 # numbers, one a word
    kill $(cat "/proc/$pid/task/$pid/children" 2>/dev/null) "$pid" 2>/dev/null
  fi
}

tries=0
while :; do
  make_base "$1" || exit 1
  exec 9>>"$1/.lock" || exit 1
  waited=0
  until flock -n 9; do
    # Once a second; the first look is at once.
    if [ $((waited % 5)) -eq 0 ]; then
      read_holder "$1"
      case "$holder" in
        # Left from a connection of this deployment that was cut.
        "$2 "*) end_holder "$2";;
        ?*) if is_stale "$1" "$5"; then end_holder "$holder"; fi;;
      esac
    fi
    if [ "$waited" -ge $(($4 * 5)) ]; then
      case "$since" in ''|*[!0-9]*) age='?';; *) age=$(($(date +%s) - since));; esac
      printf 'BUSY %s, for %s s now\n\nAEGIS-LOCK\n' "$holder" "$age"; exit 75
    fi
    sleep 0.2
    waited=$((waited + 1))
  done
  # The holder before may have removed the directory: a lock on the unlinked file protects nothing.
  [ "$(stat -L -c %i /proc/self/fd/9)" != "$(stat -c %i -- "$1/.lock" 2>/dev/null)" ] || break
  tries=$((tries + 1)); [ "$tries" -lt 10 ] || exit 1
done
if [ -n "$made" ] && [ ! -e "$1/.aegis-before" ]; then
  printf '%s' "$made" > "$1/.aegis-before.new" && mv -f -- "$1/.aegis-before.new" "$1/.aegis-before" || exit 1
fi
printf '%s\n' "$$" > "$1/.lock.beat"
printf '%s %s %s\n' "$$" "$(date +%s)" "$3" > "$1/.lock.owner"
end_work "$1"
rm -f -- "$1/.work"
printf '\nAEGIS-LOCK\n'
# Only this shell holds the lock, and it starts no process: its end frees the lock.
# After a removal there is nothing to write to.
while read -r _; do [ ! -e "$1/.lock" ] || printf '%s\n' "$$" > "$1/.lock.beat"; done
