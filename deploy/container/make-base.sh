#!/usr/bin/env bash
# Make the base image where no image registry can be reached: a minimal Debian from the
# distribution's own packages, tagged with the name the Containerfiles ask for.
#
#   make-base.sh [MIRROR]     as root; MIRROR is a Debian mirror, by default the one apt uses here
#
# Does nothing where an image of that name is there already. Takes a minute and 220 MB.
# Needs: apt-get install podman buildah debootstrap crun
set -euo pipefail

SUITE=bookworm
IMAGE=debian:bookworm-slim

fail() { printf 'make-base.sh: %s\n' "$1" >&2; exit 2; }

for program in podman debootstrap; do
    command -v "$program" >/dev/null || fail "$program is missing: apt-get install $program"
done
if podman image exists "localhost/$IMAGE"; then
    echo "localhost/$IMAGE is there already"
    exit 0
fi
[ "$(id -u)" = 0 ] || fail 'debootstrap makes device files, so this must be run by root'

mirror=${1:-}
if [ -z "$mirror" ] && command -v apt-get >/dev/null; then
    mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' "Codename: $SUITE" | head -n 1)
fi
[ -n "$mirror" ] || fail 'no Debian mirror known on this machine: make-base.sh MIRROR'

root=$(mktemp -d)
trap 'rm -rf --one-file-system "$root"' EXIT
echo "making $IMAGE from $mirror"
debootstrap --variant=minbase --include=ca-certificates "$SUITE" "$root" "$mirror" >"$root.log" 2>&1 || {
    tail -n 5 "$root.log" >&2
    fail "debootstrap failed; its whole log is $root.log"
}
rm -f "$root.log"
# What the main mirror is, the updates and security fixes are beside.
printf 'deb %s %s main\ndeb %s %s-updates main\ndeb %s-security %s-security main\n' \
    "$mirror" "$SUITE" "$mirror" "$SUITE" "$mirror" "$SUITE" >"$root/etc/apt/sources.list"
rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
tar -C "$root" -c . | podman import --quiet - "localhost/$IMAGE"
