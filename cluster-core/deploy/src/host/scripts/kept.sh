# shellcheck shell=sh
# $1 base, $2 note, $3 mark, $4 bytes of a note that is printed here; a larger one is named and read alone.
cd -- "$1/releases" 2>/dev/null || exit 0
for release in *; do
  [ -f "$release/$2" ] || continue
  if [ "$(wc -c < "$release/$2")" -gt "$4" ]; then printf 'large=%s\n' "$release"
  else printf 'note='; tr -d '\n\r' < "$release/$2"; echo; fi
  if [ -f "$release/$3" ]; then printf 'ready=%s=' "$release"; head -c 65536 "$release/$3" | tr -d '\n\r'; echo; fi
done
current=$(readlink ../current); printf 'current=%s\n' "${current#releases/}"
