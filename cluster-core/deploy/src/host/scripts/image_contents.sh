# shellcheck shell=sh
# $1 format, then references.
format=$1; shift
for image in "$@"; do
  content=$(docker image inspect --format "$format" "$image" 2>/dev/null) && printf '%s %s\n' "$image" "$content"
done
true
