# shellcheck shell=sh
# $1 base, $2 note, $3 mark.
cd -- "$1/releases" 2>/dev/null || exit 0
for release in *; do
  [ -f "$release/$2" ] || continue
  printf 'note='; head -c 262144 "$release/$2" | tr -d '\n\r'; echo
  if [ -f "$release/$3" ]; then printf 'ready=%s=' "$release"; head -c 65536 "$release/$3" | tr -d '\n\r'; echo; fi
done
current=$(readlink ../current); printf 'current=%s\n' "${current#releases/}"
