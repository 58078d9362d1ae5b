# shellcheck shell=sh
# $1 base, $2 deployment, $3 who, $4 seconds. Standard input stays open while we hold the lock. `.work`
# names the process group of the last script that changed something: it may outlive its connection.
tries=0
while :; do
  # shellcheck disable=SC2174 # parents are made as the directory itself
  mkdir -p -m 700 -- "$1" || exit 1
  # shellcheck disable=SC2153 # sudo sets both
  [ "$(id -u)" != 0 ] || [ -z "${SUDO_UID:-}" ] || chown -- "$SUDO_UID:$SUDO_GID" "$1" || exit 1
  exec 9>>"$1/.lock" || exit 1
  if ! flock -n 9; then
    read -r pid since holder < "$1/.lock.owner" || true
    case "$pid" in ''|*[!0-9]*) pid=0;; esac
    case "$holder" in "$2 "*)
      if [ "$pid" -gt 1 ] && tr '\0' ' ' < "/proc/$pid/cmdline" 2>/dev/null | grep -qF "$2"; then
        # shellcheck disable=SC2046 # numbers, one a word
        kill $(cat "/proc/$pid/task/$pid/children" 2>/dev/null) "$pid" 2>/dev/null
      fi;;
    esac
    if ! flock -w "$4" 9; then
      read -r pid since holder < "$1/.lock.owner" || true
      case "$since" in ''|*[!0-9]*) age='?';; *) age=$(($(date +%s) - since));; esac
      printf 'BUSY %s, for %s s now\n\nAEGIS-LOCK\n' "$holder" "$age"; exit 75
    fi
  fi
  # Whoever held it may have removed the directory, and then this is the lock of nothing.
  [ "$(stat -L -c %i /proc/self/fd/9)" != "$(stat -c %i -- "$1/.lock" 2>/dev/null)" ] || break
  tries=$((tries + 1)); [ "$tries" -lt 10 ] || exit 1
done
printf '%s %s %s\n' "$$" "$(date +%s)" "$3" > "$1/.lock.owner"
end_work "$1"
rm -f -- "$1/.work"
printf '\nAEGIS-LOCK\n'
# Without the lock: only the shell holds it, so only the shell must end to free it.
cat 9>&- >/dev/null
