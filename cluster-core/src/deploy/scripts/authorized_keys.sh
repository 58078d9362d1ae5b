# shellcheck shell=sh
# $1 owner, $2 options, $3 public key with its comment, or empty to take it away, $4 the script.
# Everybody else's lines stay as they are; what changes nothing writes nothing.
set -e
end=" aegis link of $1"; script="$HOME/.ssh/aegis-link-$1"
keys="$HOME/.ssh/authorized_keys"
if [ -z "$3" ]; then
  rm -f -- "$script"
  [ -e "$keys" ] || exit 0
else
  [ -d "$HOME/.ssh" ] || mkdir -m 700 -- "$HOME/.ssh"
  printf '%s' "$4" > "$script.new"
  mv -f -- "$script.new" "$script"
fi
# A file that is kept elsewhere stays there.
keys=$(readlink -f -- "$keys")
[ -e "$keys" ] || : > "$keys"
rm -f -- "$keys.aegis"
cp -p -- "$keys" "$keys.aegis"
end="$end" awk '{ at = length($0) - length(ENVIRON["end"]); if (at < 0 || substr($0, at + 1) != ENVIRON["end"]) print }' "$keys" > "$keys.aegis"
[ -z "$3" ] || printf '%s,command="sh %s" %s
' "$2" "'$script'" "$3" >> "$keys.aegis"
if cmp -s -- "$keys.aegis" "$keys"; then rm -f -- "$keys.aegis"; else mv -f -- "$keys.aegis" "$keys"; fi
