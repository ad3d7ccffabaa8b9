# The guest's first process, on the machine's files: what a node has when it is up, then the
# command. Run by busybox, so that little of the machine is needed; the command is not.
b=/run/busybox
here=/run/testudo-guest
release=$($b uname -r)

$b mkdir -p /dev/pts /dev/shm /dev/net
$b mount -t devpts -o mode=620,ptmxmode=666 devpts /dev/pts
$b mount -t tmpfs -o mode=1777 shm /dev/shm
$b mount -t tmpfs -o mode=1777 lock /run/lock 2>/dev/null
$b mount -t cgroup2 cgroup /sys/fs/cgroup
$b [ -e /dev/net/tun ] || $b mknod /dev/net/tun c 10 200
$b [ -e /dev/fd ] || $b ln -s /proc/self/fd /dev/fd
$b mkdir -p "/lib/modules/$release"
$b mount -o bind,ro "$guest_modules" "/lib/modules/$release"
unset guest_root guest_control guest_modules guest_shared
$b hostname guest
$b ip link set lo up
# A kernel that has gone wrong says so at once, and no test passes on it.
echo 1 > /proc/sys/kernel/panic_on_oops

echo "$release" > $here/kernel.new
$b mv $here/kernel.new $here/kernel
$b setsid /bin/sh $here/command.sh < /dev/null >> $here/output 2>> $here/errors
echo $? > $here/exit.new
$b mv $here/exit.new $here/exit
$b sync
$b poweroff -f
