# shellcheck shell=sh
# Functions for names at the top of the base directory, which is the working directory.

is_ours() { case "$(readlink -- "$1" 2>/dev/null)" in current/*) return 0;; esac; return 1; }
is_there() { [ -e "$1" ] || [ -L "$1" ]; }

# Keeps a file that replaced ours, under a name that is free.
keep_edited() {
  number=1
  while is_there "$1.edited-$number"; do number=$((number + 1)); done
  mv -- "$1" "$1.edited-$number"
}

# Links the names of the current release, where people look for them and Compose resolves paths. What stood
# there before the first deployment is saved, once; anything else is an edit of ours, and is kept under another name.
relink() {
  for path in current/* current/.[!.]*; do
    file=${path#current/}
    case "$file" in release.json|ready.json|private.list|previous) continue;; esac
    [ -e "$path" ] || continue
    if is_there "$file" && ! is_ours "$file"; then
      if grep -qxF -- "file $file" .aegis-before 2>/dev/null && ! is_there "$file.before-aegis"; then
        mv -- "$file" "$file.before-aegis"
      else
        keep_edited "$file"
      fi
    fi
    ln -sfn -- "current/$file" "$file"
  done
}
