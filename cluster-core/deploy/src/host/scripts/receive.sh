# shellcheck shell=sh
# $1 base, $2 deployment, $3 the last entry of the stream: a stream that was cut never takes the
# content's place. A digest says all of its content, so what another deployment put there is equal.
set -e
cd -- "$1/releases"
mkdir -p -m 700 .files
part=".files/$2.part"
rm -rf -- "$part"; mkdir -m 700 -- "$part"
tar -x -p -o -f - -C "$part"
[ -f "$part/$3" ]
rm -f -- "$part/$3"
# shellcheck disable=SC2153 # sudo sets both
[ "$(id -u)" != 0 ] || [ -z "${SUDO_UID:-}" ] || chown -R -- "$SUDO_UID:$SUDO_GID" .files
for content in "$part"/*; do
  name=${content##*/}
  # What is there was changed by hand, and containers may have it mounted: it is mended in its place.
  if [ -d "$content" ] && [ -d ".files/$name" ]; then cp -a -- "$content/." ".files/$name/"; rm -rf -- "$content"
  elif [ -f "$content" ] && [ -f ".files/$name" ]; then cp -a -- "$content" ".files/$name"; rm -f -- "$content"
  else rm -rf -- ".files/$name"; mv -T -- "$content" ".files/$name"; fi
done
rmdir -- "$part"
sync
