# shellcheck shell=sh
# $1 base, $2 deployment. The top-level names of the release are linked at the top, where people look
# for them and Compose resolves paths.
set -e
cd -- "$1"
id=$2
[ -f "releases/$id/release.json" ]
rm -f current.new; ln -s "releases/$id" current.new; mv -T -- current.new current
for path in current/* current/.[!.]*; do
  file=${path#current/}
  case "$file" in release.json|ready.json|previous) continue;; esac
  [ -e "$path" ] || continue
  if [ -e "$file" ] && [ ! -L "$file" ]; then mv -- "$file" "$file.before-aegis"; fi
  ln -sfn -- "current/$file" "$file"
done
for file in * .[!.]*; do
  if [ -L "$file" ] && [ ! -e "$file" ]; then
    case "$(readlink -- "$file")" in current/*) rm -f -- "$file";; esac
  fi
done
# The files were synced when they were written; all of the host's other writes are not ours to wait for.
sync -- "releases/$id" releases . 2>/dev/null || sync
