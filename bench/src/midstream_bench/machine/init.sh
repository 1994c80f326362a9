#!/bin/busybox sh
# First process of the virtual machine (see run.py): makes a writable root out of the host's files and
# runs the command there. The host's files are mounted read-only; what the guest writes goes to memory.
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
. /settings # KERNEL, MODULES (their folder on the host) and PRELOAD (the modules packed beside this file)
for module in $PRELOAD; do modprobe "$module"; done
until [ -e /dev/vport*p1 ] && [ -e /dev/vport*p2 ]; do usleep 10000; done

mkdir -p /host /memory /root
mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose host /host || exec poweroff -f
mount -t tmpfs memory /memory
mkdir /memory/changed /memory/work
mount -t overlay -o lowerdir=/host,upperdir=/memory/changed,workdir=/memory/work root /root || exec poweroff -f

# The modules lie in a cache folder: the package was unpacked there, not installed.
mkdir -p "/root/lib/modules/$KERNEL"
mount --bind "/host$MODULES" "/root/lib/modules/$KERNEL"
mount -t proc proc /root/proc
mount -t sysfs sys /root/sys
mount -t bpf bpf /root/sys/fs/bpf
mount -t devtmpfs dev /root/dev
mkdir -p /root/dev/pts /root/dev/shm
mount -t devpts devpts /root/dev/pts
mount -t tmpfs shm /root/dev/shm
mount -t tmpfs run /root/run
ifconfig lo up
hostname midstream-vm

cp /start /command /root/run/
exec switch_root /root /bin/sh /run/start
