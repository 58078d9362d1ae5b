# shellcheck shell=sh
# $1 base, $2 marker, $3 list of the release's private files. Prints `.env` and those files, with a line of
# the marker between them; 256 KiB of each at most.
cd -- "$1" 2>/dev/null || exit 0
head -c 262144 .env 2>/dev/null
if [ -f "current/$3" ]; then
  while IFS= read -r file; do
    printf '\n%s\n' "$2"
    head -c 262144 "current/$file" 2>/dev/null
  done < "current/$3"
fi
true
