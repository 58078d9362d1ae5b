# shellcheck shell=sh
# $1 directory, $2 bytes of the largest file that is hashed; standard input: paths in the directory, one a
# line. Prints SHA-256 and path of each that is a file. Nothing else is opened: containers may keep any amount
# of data there.
cd -- "$1" || exit 1
while IFS= read -r path; do
  [ -f "$path" ] || continue
  if [ "$(stat -L -c %s -- "$path")" -gt "$2" ]; then printf 'large  %s\n' "$path"
  else sha256sum -- "$path"; fi
done
