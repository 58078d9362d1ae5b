# shellcheck shell=sh
# $1 base directory, $2 project, $3 format of a container, then images to look for. Prints name=value lines; changes nothing.
base=$1; project=$2; format=$3; shift 3
say() { printf '%s=%s\n' "$1" "$(printf '%s' "$2" | tr '\n\r' '  ' | cut -c1-400)"; }
say os "$(uname -s)"
say arch "$(uname -m)"
say uid "$(id -u)"
say gid "$(id -g)"
say user "$(id -un)"
say epoch "$(date +%s)"
say cpus "$(nproc 2>/dev/null || echo 1)"
say memory_total_kb "$(sed -n 's/^MemTotal: *\([0-9]*\).*/\1/p' /proc/meminfo)"
say memory_free_kb "$(sed -n 's/^MemAvailable: *\([0-9]*\).*/\1/p' /proc/meminfo)"
command -v flock >/dev/null 2>&1 && say flock yes
dir=$base
while [ ! -e "$dir" ] && [ "$dir" != / ]; do dir=$(dirname "$dir"); done
# Of what it lies on: a directory that nobody may write is another lack than a disk that nobody can.
mount=$(df -Pk "$dir" 2>/dev/null | awk 'NR==2{print $6}')
say base_free_kb "$(df -Pk "$dir" 2>/dev/null | awk 'NR==2{print $4}')"
awk -v mount="$mount" '$2 == mount { options = $4 } END { exit !(("," options ",") ~ /,ro,/) }' /proc/mounts 2>/dev/null && say base_read_only yes
# What lies in memory is gone after a reboot, while Docker starts the containers again.
[ "$mount" != / ] && awk -v mount="$mount" '$2 == mount { type = $3 } END { exit !(type == "tmpfs" || type == "ramfs") }' /proc/mounts 2>/dev/null && say base_volatile yes
command -v tar >/dev/null 2>&1 && say tar yes
writable=; [ -d "$dir" ] && [ -w "$dir" ] && writable=yes
sudo=
as_worker() { if [ -n "$sudo" ]; then sudo -n -H env DOCKER_CONTEXT=default "$@"; else "$@"; fi; }
if command -v docker >/dev/null 2>&1; then
  say docker_cli yes
  # Each call of the docker command costs some 50 ms: one answers most, and the others run beside it. What
  # runs beside another prints whole short lines only, so that none is cut by another's.
  beside() {
    say compose_version "$(as_worker docker compose version --short 2>/dev/null)" &
    for image in "$@"; do as_worker docker image inspect "$image" >/dev/null 2>&1 && say image "$image"; done &
  }
  [ "$(id -u)" != 0 ] || beside "$@"
  ask() { as_worker docker info --format '{{.ServerVersion}}|{{.DockerRootDir}}|{{json .Runtimes}}|{{json .SecurityOptions}}' 2>&1; }
  info=$(ask)
  case "$info" in [0-9]*) usable=yes;; *) usable=;; esac
  if [ "$(id -u)" != 0 ] && { [ -z "$usable" ] || [ -z "$writable" ]; }; then
    refusal=$(sudo -n -H sh -c 'DOCKER_CONTEXT=default docker version' 2>&1 >/dev/null) && sudo=yes
    if [ -n "$sudo" ]; then
      say sudo yes; writable=yes; info=$(ask)
      # What sudo reads is written to a log: the files of a release come that way.
      case "$(sudo -n -l 2>/dev/null)" in *'!log_input'*) ;; *log_input*) say sudo_logs_input yes;; esac
    else say sudo_error "$refusal"; fi
  fi
  version=${info%%|*}; rest=${info#*|}; root=${rest%%|*}
  case "$version" in
    [0-9]*) say docker_version "$version";;
    *) say docker_error "$(docker version --format '{{.Server.Version}}' 2>&1 >/dev/null)"; root=;;
  esac
  case "$rest" in *'"nvidia":'*) say nvidia_runtime yes;; esac
  case "$rest" in *name=selinux*) say docker_selinux yes;; esac
  case "$rest" in *name=rootless*) say docker_rootless yes;; esac
  case "$root" in /var/snap/docker/*) say docker_snap yes;; esac
  # How to ask was to be found out first.
  [ "$(id -u)" = 0 ] || beside "$@"
  containers=$(as_worker docker ps -aq --no-trunc --filter "label=com.docker.compose.project=$project" --filter label=com.docker.compose.oneoff=False 2>/dev/null)
  # shellcheck disable=SC2086 # ids, one a word
  [ -z "$containers" ] || containers=$(as_worker docker inspect --format "$format" $containers 2>/dev/null | sed 's/^/container=/')
  wait
  [ -z "$containers" ] || printf '%s\n' "$containers"
fi
for socket in /var/run/docker.sock /run/docker.sock; do
  if [ -S "$socket" ]; then say docker_socket "$socket"; say docker_gid "$(stat -L -c %g "$socket")"; break; fi
done
dir=${root:-/var/lib/docker}
while [ ! -d "$dir" ] && [ "$dir" != / ]; do dir=$(dirname "$dir"); done
say disk_free_kb "$(df -Pk "$dir" 2>/dev/null | awk 'NR==2{print $4}')"
say disk_total_kb "$(df -Pk "$dir" 2>/dev/null | awk 'NR==2{print $2}')"
[ -z "$writable" ] || say base_writable yes
say disk_path "$dir"
[ -d "$base" ] && say base_exists yes
# The link is the login's own, without sudo.
[ -d "$base/run" ] && [ -w "$base/run" ] && say link_directory yes
# Sockets that listen (TCP), or are bound and not connected (UDP): protocol, then address and port as the kernel has them.
for protocol in tcp udp; do
  state=0A; [ "$protocol" = tcp ] || state=07
  for table in "/proc/net/$protocol" "/proc/net/${protocol}6"; do
    [ ! -r "$table" ] || awk -v state="$state" '$4==state{print $2}' "$table"
  done | sort -u | head -n 4096 | while read -r socket; do say bound "$protocol $socket"; done
done
if command -v nvidia-smi >/dev/null 2>&1; then
  # Drivers before 450 refuse a query that names MIG: their GPUs are not divided.
  gpus=$(nvidia-smi --query-gpu=index,uuid,mig.mode.current,memory.total,name --format=csv,noheader,nounits 2>/dev/null) ||
    gpus=$(nvidia-smi --query-gpu=index,uuid,memory.total,name --format=csv,noheader,nounits 2>/dev/null | sed 's/,/, [N\/A],/2')
  printf '%s\n' "$gpus" | head -n 256 | while read -r line; do say gpu "$line"; done
  case $gpus in
  *', Enabled, '*) nvidia-smi -L 2>/dev/null | head -n 512 | while IFS= read -r line; do say gpu_list "$line"; done ;;
  esac
fi
command -v nvidia-ctk >/dev/null 2>&1 && say nvidia_toolkit yes
if as_worker test -r "$base/current/release.json"; then
  # Names at the top that are not links into the release: edited by hand, and read by Compose.
  # shellcheck disable=SC2016 # expanded by the inner shell
  as_worker sh -c 'cd -- "$1" && for path in current/* current/.[!.]*; do
    name=${path#current/}
    case "$name" in release.json|ready.json|link.json|private.list|previous) continue;; esac
    if [ -e "$path" ] && [ "$(readlink -- "$name" 2>/dev/null)" != "$path" ]; then printf "replaced=%s\n" "$name"; fi
  done' sh "$base"
  # Larger than any that is written, and less than what one script may print.
  printf 'release='; as_worker head -c 900000 "$base/current/release.json" | tr -d '\n\r'; echo
fi
if as_worker test -r "$base/current/ready.json"; then printf 'ready='; as_worker head -c 65536 "$base/current/ready.json" | tr -d '\n\r'; echo; fi
if as_worker test -r "$base/current/link.json"; then printf 'link='; as_worker head -c 1024 "$base/current/link.json" | tr -d '\n\r'; echo; fi
as_worker test -d "$base/releases" && for release in $(as_worker ls -1 "$base/releases" 2>/dev/null | head -50); do say kept "$release"; done
true
