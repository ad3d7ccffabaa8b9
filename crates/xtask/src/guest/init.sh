#!/bin/sh
# The guest's first process, in its RAM disk: the machine's files under a layer of memory.
# From the kernel's command line: guest_root (hostfs or 9p), guest_control, guest_shared.
set -eu
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in $(cat /modules.order); do insmod "$module"; done

# folder TAG PATH PLACE OPTIONS: a folder of the machine.
folder() {
    mkdir -p "$3"
    case $guest_root in
    hostfs) mount -t hostfs -o "$4,$2" "$1" "$3" ;;
    9p) mount -t 9p -o "$4,trans=virtio,version=9p2000.L,msize=262144" "$1" "$3" ;;
    esac
}
# What only the machine itself changes, and nobody while a test runs, may be cached; what the
# guest writes is written through, so that it can be read while the command still runs.
case $guest_root in
hostfs) still=ro through=sync ;;
9p) still=ro,cache=loose through=cache=none ;;
esac
folder root / /machine "$still"
mount -t tmpfs -o mode=755 layer /layer
mkdir /layer/upper /layer/work
mount -t overlay -o lowerdir=/machine,upperdir=/layer/upper,workdir=/layer/work root /root
mount -t tmpfs -o mode=755 run /root/run
folder control "$guest_control" /root/run/testudo-guest "$through"
if [ -n "${guest_shared:-}" ]; then
    folder shared "$guest_shared" /root/run/testudo-guest/shared "$through"
fi
cp /bin/busybox /root/run/busybox
for place in proc sys dev; do mount --move "/$place" "/root/$place"; done
exec switch_root /root /run/busybox sh /run/testudo-guest/start.sh
