# shellcheck shell=sh
# $1 project, $2 format. The host's clock, then a line a container. Asked of the engine itself: Compose
# leaves out restarts and times, and takes longer.
stack_containers "$1" "$2" || exit 1
true
