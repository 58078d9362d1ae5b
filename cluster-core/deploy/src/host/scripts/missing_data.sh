# shellcheck shell=sh
# $1 base, then paths of writable roots: moves what an older layout kept under a digest to `.data`, and prints the
# paths for which the host has nothing.
#
# Containers that have the directory mounted keep it: a move keeps its inode. Older releases reach it through a link
# in its old place. A directory that two paths shared is moved for the first path and copied for the others.
cd -- "$1" || exit 1
shift
if [ ! -e .data ]; then mkdir -m 700 -- .data && : > .data/.aegis || exit 1; fi
for path in "$@"; do
  data=".data/$path"
  if [ -e "$data" ] || [ -L "$data" ]; then continue; fi
  old=$(readlink "current/$path" 2>/dev/null)
  case "$old" in
    *".files/"*) old="releases/.files/${old##*.files/}";;
    *) old=;;
  esac
  if [ -z "$old" ] || [ ! -e "$old" ]; then printf '%s\n' "$path"; continue; fi
  case "$path" in */*) (umask 077 && mkdir -p -- ".data/${path%/*}") || exit 1;; esac
  if [ -L "$old" ]; then
    # A cut copy never takes the place of the data.
    rm -rf -- "$data.part"
    cp -a -- "$old/." "$data.part" 2>/dev/null || cp -a -- "$(readlink -f "$old")" "$data.part" || exit 1
    mv -- "$data.part" "$data" || exit 1
  else
    mv -- "$old" "$data" || exit 1
    ln -s -- "../../$data" "$old" || exit 1
  fi
done
sync
