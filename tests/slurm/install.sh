#!/usr/bin/env bash
# Debian's Slurm, munge and shellcheck for the tests beside this file; nothing if they are there. Where they cannot be
# installed this says so, and the tests are skipped and say why.
set -u
PATH=$PATH:/usr/sbin:/sbin

missing=
for program in slurmctld slurmd munged mungekey shellcheck; do
    command -v "$program" >/dev/null || missing="$missing $program"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "Slurm's tests lack$missing, and only root can install them, where there is apt-get"
    exit 0
fi
packages=(slurm-wlm munge shellcheck)
log=$(mktemp)
echo "installing ${packages[*]} for Slurm's tests, which lack$missing"
# What needs the network may take its time only; an installation that has begun is not interrupted.
export DEBIAN_FRONTEND=noninteractive
timeout 60 apt-get update >/dev/null 2>&1
if ! { timeout 120 apt-get install -y --no-install-recommends --download-only "${packages[@]}" &&
    apt-get install -y --no-install-recommends "${packages[@]}"; } >"$log" 2>&1; then
    echo "they cannot be installed here:" && tail -n 3 "$log"
fi
rm -f "$log"
