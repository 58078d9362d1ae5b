# shellcheck shell=sh
# $1 base, $2 release, $3 mark's file, $4 mark, then ids of images that this deployment brought. These are
# noted for the clean-up of later deployments.
set -e
cd -- "$1"
release=$2
[ -d "releases/$release" ]
printf '%s\n' "$4" > "releases/$release/$3.new"
sync -- "releases/$release/$3.new" 2>/dev/null || sync
mv -f -- "releases/$release/$3.new" "releases/$release/$3"
sync -- "releases/$release" 2>/dev/null || sync
shift 4
for id in "$@"; do
  grep -qxF -- "$id" releases/.images 2>/dev/null || printf '%s\n' "$id" >> releases/.images
done
