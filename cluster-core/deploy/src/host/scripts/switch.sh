# shellcheck shell=sh
# $1 base, $2 deployment.
set -e
cd -- "$1"
id=$2
[ -f "releases/$id/release.json" ]
rm -f current.new; ln -s "releases/$id" current.new; mv -T -- current.new current
relink
for file in * .[!.]*; do
  if is_ours "$file" && [ ! -e "$file" ]; then rm -f -- "$file"; fi
done
# The files were synced when they were written; all of the host's other writes are not ours to wait for.
sync -- "releases/$id" releases . 2>/dev/null || sync
