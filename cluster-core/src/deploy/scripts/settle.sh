# shellcheck shell=sh
# $1 base, $2 release, $3 mark's file, $4 mark, $5 releases kept. Node images that no release names any
# more go; Docker keeps those that a container uses.
set -e
cd -- "$1"
[ -d "releases/$2" ]
printf '%s\n' "$4" > "releases/$2/$3.new"
sync -- "releases/$2/$3.new" 2>/dev/null || sync
mv -- "releases/$2/$3.new" "releases/$2/$3"
sync -- "releases/$2" 2>/dev/null || sync
current=$(readlink current); n=0
# shellcheck disable=SC2045 # ids of ours, which hold no spaces; by time
for release in $(ls -1t releases); do
  n=$((n + 1))
  if [ "$n" -gt "$5" ] && [ "releases/$release" != "$current" ]; then rm -rf -- "releases/$release"; fi
done
if [ -d releases/.files ]; then
  # Content that no release leads to is nobody's.
  used=$(find releases -path releases/.files -prune -o -type l -exec readlink '{}' ';')
  for content in releases/.files/*; do
    case "$used" in *"/.files/${content##*/}"*) ;; *) rm -rf -- "$content";; esac
  done
fi
for image in $(docker image ls --format '{{.Repository}}:{{.Tag}}' --filter 'reference=aegis-node:*'); do
  grep -qF "AEGIS_NODE_IMAGE=\"$image\"" releases/*/.env || docker image rm "$image" >/dev/null 2>&1 || true
done
