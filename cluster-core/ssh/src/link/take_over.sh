# shellcheck shell=sh
# $1 note, $2 owner, $3 socket or empty. Ends the sshd session that the note names if it is ours (same owner)
# and still the same process (same start time), removes the stale socket, and notes this session:
# the nearest ancestor that is an sshd.
start_of() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20; }
is_sshd() { case "$(cat "/proc/$1/comm" 2>/dev/null)" in sshd*) return 0;; esac; return 1; }
mine=$PPID; hops=0
while [ "$mine" -gt 1 ] && ! is_sshd "$mine" && [ $hops -lt 8 ]; do
  mine=$(sed -n 's/^PPid:[[:space:]]*//p' "/proc/$mine/status"); mine=${mine:-1}; hops=$((hops + 1))
done
if [ -f "$1" ]; then
  read -r pid start owner < "$1" || true
  case "$pid" in ''|*[!0-9]*) pid=0;; esac
  if [ "$pid" -gt 1 ] && [ "$pid" != "$mine" ] && [ "$owner" = "$2" ] && is_sshd "$pid" && [ "$(start_of "$pid")" = "$start" ]; then
    kill "$pid" 2>/dev/null
    n=0; while [ -d "/proc/$pid" ] && [ $n -lt 30 ]; do sleep 0.1; n=$((n + 1)); done
  fi
  # The session of another owner loses its socket. Its note stays, for the case that the socket is given back.
  if [ -n "$owner" ] && [ "$owner" != "$2" ]; then mv -f -- "$1" "$1.other"; fi
fi
[ -z "$3" ] || rm -f -- "$3" || exit 1
printf '%s %s %s\n' "$mine" "$(start_of "$mine")" "$2" > "$1.new" && mv -f -- "$1.new" "$1"
