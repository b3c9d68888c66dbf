#!/bin/sh
# Becomes the systemd of a machine (machine.py starts it as process 1 of new namespaces). Its root lies over this machine's; what
# is written there, and every mount made here, is gone with its last process.
#
#   boot.sh NAME FOLDER       FOLDER/files is laid over the root, FOLDER/binds/* are mounted read-only under /opt
#
# $HIERARCHIES are those of this machine's control groups, as PLACE:OPTIONS (none for cgroup2); in each, a group NAME has been made.
set -eu
name=$1 folder=$2

if [ -z "${JOINED-}" ]; then
    for hierarchy in $HIERARCHIES; do echo 0 >"${hierarchy%:*}/$name/cgroup.procs"; done
    # Now: the namespace begins at the groups that its first process is in.
    JOINED=yes exec unshare --cgroup "$0" "$@"
fi

mount -t tmpfs -o mode=755 "$name" "$folder/machine"
root=$folder/machine/root
mkdir "$root" "$folder/machine/upper" "$folder/machine/work"
mount -t overlay -o "lowerdir=/,upperdir=$folder/machine/upper,workdir=$folder/machine/work" "$name" "$root"

# Nothing that this machine mounts or has enabled, and none of its journals.
rm -rf "$root/etc/systemd/system" "$root/var/log/journal"
: >"$root/etc/fstab"
echo "$name" >"$root/etc/hostname"
cp -a "$folder/files/." "$root/"

mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
# The kernel's settings are this machine's too.
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs -o ro,nosuid,nodev,noexec sysfs "$root/sys"
for place in dev run tmp; do mount -t tmpfs -o mode=755,nosuid "$place" "$root/$place"; done
chmod 1777 "$root/tmp"
mknod -m 666 "$root/dev/null" c 1 3
mknod -m 666 "$root/dev/zero" c 1 5
mknod -m 666 "$root/dev/full" c 1 7
mknod -m 666 "$root/dev/random" c 1 8
mknod -m 666 "$root/dev/urandom" c 1 9
mknod -m 666 "$root/dev/tty" c 5 0
ln -s /proc/self/fd "$root/dev/fd"
# systemd makes a unit's own /dev of these.
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
mount -t tmpfs -o mode=1777,nosuid,nodev shm "$root/dev/shm"

groups=$root/sys/fs/cgroup
# Several: systemd's hybrid layout, in which each has a folder.
case $HIERARCHIES in *" "*) mount -t tmpfs -o mode=755,nosuid,nodev,noexec cgroup "$groups" ;; esac
for hierarchy in $HIERARCHIES; do
    options=${hierarchy##*:} place=$groups/${hierarchy#/sys/fs/cgroup}
    place=${place%:*}
    mkdir -p "$place"
    if [ -n "$options" ]; then
        mount -t cgroup -o "nosuid,nodev,noexec,$options" cgroup "$place"
    else
        mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 "$place"
    fi
done

for bind in "$folder"/binds/*; do
    mkdir -p "$root/opt/${bind##*/}"
    mount --bind "$(realpath "$bind")" "$root/opt/${bind##*/}"
    mount -o remount,bind,ro "$root/opt/${bind##*/}"
done

mkdir "$root/run/old"
cd "$root"
pivot_root . run/old
umount -l /run/old
rmdir /run/old
# Units' own mount namespaces receive what is mounted later.
mount --make-rshared /

# Without what no namespace holds: the clock, modules, the hardware.
exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    setpriv --bounding-set -sys_time,-sys_module,-sys_rawio,-syslog,-wake_alarm,-block_suspend \
    /lib/systemd/systemd --unit=basic.target --show-status=no
