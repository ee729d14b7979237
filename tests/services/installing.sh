# Sourced by the installers.

fail() {
  echo "error: $*" >&2
  exit 1
}

# need COMMAND PACKAGE: installs the Debian package when the command fails.
need() {
  eval "$1" >/dev/null 2>&1 && return
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null ||
    fail "\`${1%% *}\` does not work here; install \`$2\` (Debian's name) and run $0 again"
  export DEBIAN_FRONTEND=noninteractive
  apt-get install -y -q --no-install-recommends "$2" >&2 ||
    { apt-get update -q >&2 && apt-get install -y -q --no-install-recommends "$2" >&2; }
  eval "$1" >/dev/null 2>&1 || fail "\`${1%% *}\` does not work even with \`$2\` installed"
}

# alone FOLDER: makes the folder, and waits until no other installer is at work in it.
alone() {
  mkdir -p "$1"
  exec 9>"$1/lock"
  python3 -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)'
}

# up_to_date FILE PINS: whether what the file stands for was installed with these pins.
up_to_date() {
  [ "$(cat "$1" 2>/dev/null)" = "$2" ]
}
