# shellcheck shell=sh
# $1 base, $2 mark's file, $3 releases kept. Drops what no kept release needs: older releases, content of
# theirs, and images that deployments brought. Docker keeps an image that a container uses. Goes on after a
# failure; the last line of standard error is the first failure.
cd -- "$1" || exit 1
mark=$2; kept=$3; failures=
failed() { [ -n "$failures" ] || failures=$1; }
current=$(readlink current) || exit 1
n=0
# shellcheck disable=SC2045 # ids of ours, which hold no spaces; by time
for release in $(ls -1t releases); do
  n=$((n + 1))
  if [ "$n" -gt "$kept" ] && [ "releases/$release" != "$current" ]; then
    error=$(rm -rf -- "releases/$release" 2>&1) || failed "$error"
  fi
done
if [ -d releases/.files ]; then
  # Content that no release links to.
  used=$(find releases -path releases/.files -prune -o -type l -exec readlink '{}' ';')
  for content in releases/.files/*; do
    [ -e "$content" ] || continue
    case "$used" in
      *"/.files/${content##*/}"*) ;;
      *) error=$(rm -rf -- "$content" 2>&1) || failed "$error";;
    esac
  done
fi
for image in $(docker image ls --format '{{.Repository}}:{{.Tag}}' --filter 'reference=aegis-node:*'); do
  grep -qF "AEGIS_NODE_IMAGE=\"$image\"" releases/*/.env || docker image rm "$image" >/dev/null 2>&1
done
if [ -e releases/.images ]; then
  while read -r id; do
    if grep -qF -- "$id" releases/*/"$mark"; then printf '%s\n' "$id"
    elif docker image rm "$id" >/dev/null 2>&1; then :
    # In use, or with several names: the next clean-up tries again.
    elif docker image inspect "$id" >/dev/null 2>&1; then printf '%s\n' "$id"
    fi
  done < releases/.images > releases/.images.new
  mv -f -- releases/.images.new releases/.images
fi
[ -z "$failures" ] || { printf '%s\n' "$failures" | head -n 1 >&2; exit 1; }
