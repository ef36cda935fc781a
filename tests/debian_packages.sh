#!/usr/bin/env bash
# Programs that some tests need, from Debian's packages; nothing if they are there. Where they cannot be installed this
# says so, and the tests are skipped and say why.
#
#   tests/debian_packages.sh slurm [browser]
set -u
PATH=$PATH:/usr/sbin:/sbin

missing=() packages=()
# need <package> <program>...
need() {
    local package=$1 program
    shift
    for program in "$@"; do
        command -v "$program" >/dev/null || { missing+=("$program") && packages+=("$package"); }
    done
}
for kind in "$@"; do
    case $kind in
        slurm)
            need slurm-wlm slurmctld slurmd
            need munge munged mungekey
            need shellcheck shellcheck
            ;;
        browser)
            need chromium chromium
            need chromium-driver chromedriver
            ;;
        *)
            echo "tests/debian_packages.sh: no tests of '$kind'; there are slurm and browser" >&2
            exit 1
            ;;
    esac
done
[ "${#missing[@]}" -gt 0 ] || exit 0
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "tests lack ${missing[*]}; only root can install them, where there is apt-get"
    exit 0
fi
log=$(mktemp)
echo "installing ${packages[*]} for tests that lack ${missing[*]}"
# What needs the network may take its time only; an installation that has begun is not interrupted.
export DEBIAN_FRONTEND=noninteractive
timeout 60 apt-get update >/dev/null 2>&1
if ! { timeout 120 apt-get install -y --no-install-recommends --download-only "${packages[@]}" &&
    apt-get install -y --no-install-recommends "${packages[@]}"; } >"$log" 2>&1; then
    echo "they cannot be installed here:" && tail -n 3 "$log"
fi
rm -f "$log"
