#!/usr/bin/env bash
# Runs a container's command as kubelet would on this host: in mounts and processes of its own, with a
# read-only root, as user 10001 without any capability.
#
#   pod.sh FOLDER PREFIX COMMAND…
#
# FOLDER holds what the pod mounts: etc/ (at /etc/rufus-serve), opt/ (at /opt/rufus-serve), tmp/ (at
# /tmp, for this container alone), shm/ (at /dev/shm, for all of the pod). PREFIX: the folder of the
# Python that the program runs on, which may lie below /root.
set -euo pipefail

folder=$1 prefix=$2
shift 2
exec unshare --mount --pid --fork --kill-child --mount-proc bash -euo pipefail -c '
folder=$1 prefix=$2
shift 2
held=$folder/held
mkdir -p "$held"
mount -t tmpfs -o mode=0755 held "$held"
mkdir "$held/etc" "$held/prefix"
cp -a /etc/. "$held/etc"
mount --bind "$prefix" "$held/prefix"
mkdir -p "$held/etc/rufus-serve"
mount --bind "$held/etc" /etc
mount --bind "$folder/etc" /etc/rufus-serve
mount -t tmpfs -o mode=0755 opt /opt
mkdir -p /opt/rufus-serve
mount --bind "$folder/opt" /opt/rufus-serve
mount -t tmpfs -o mode=0755 root /root
mkdir -p "$prefix"
mount --bind "$held/prefix" "$prefix"
mount --bind "$folder/shm" /dev/shm
# Before the root becomes read-only: a bind takes over what its source may do.
mount --bind "$folder/tmp" /tmp
mount -o bind,remount,ro /
for place in /etc /opt /root; do mount -o remount,bind,ro "$place"; done
cd /
exec setpriv --reuid 10001 --regid 10001 --clear-groups --bounding-set=-all --inh-caps=-all \
  --no-new-privs env HOME=/tmp PYTHONDONTWRITEBYTECODE=1 "$@"
' pod "$folder" "$prefix" "$@"
