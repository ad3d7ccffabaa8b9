# The first process of a node, in namespaces of its own for network, mounts and processes: what it
# starts ends with it, what it mounts goes with it.
#
# $1: the node's folder. $2: the folder of built programs. $3: that of containerd. $4: that of the
# kubelet. $5: the node's name. $6: its address. $7: the folder of
# logs.
set -eu

# Pods' mounts are shared among the node's processes, and with nobody outside.
mount --make-rshared /
mount -t tmpfs -o mode=755 node /run
mkdir /run/node /run/programs /run/logs /run/lock
mount --bind "$1" /run/node
mount --bind "$2" /run/programs
mount --bind "$7" /run/logs
mount --bind /run/node/lib /var/lib
mount --bind /run/node/log /var/log
export PATH="/run/programs/$3:/run/programs/$4:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
unset KUBECONFIG

# The kubelet sets these to what it wants, and the machine keeps its own: it is shown that they are
# set already.
cd /run/node/sysctl
for setting in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
    kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
    name=${setting%=*}
    file=$(echo "$name" | tr / .)
    echo "${setting#*=}" >"$file"
    if [ -e "/proc/sys/$name" ]; then
        mount --bind "$file" "/proc/sys/$name"
    fi
done
# The kubelet does not start without a processor's speed, which user-mode-linux does not know.
if ! grep -q "^cpu MHz" /proc/cpuinfo; then
    sed "s/^bogomips.*/cpu MHz\t\t: 1000.000\n&/" /proc/cpuinfo >cpuinfo
    mount --bind cpuinfo /proc/cpuinfo
fi
cd /

containerd --config /run/node/containerd.toml >>"/run/logs/$5.containerd.log" 2>&1 &
containerd=$!
until ctr version >/dev/null 2>&1; do
    kill -0 "$containerd"
    sleep 0.1
done
for image in /run/node/images/*.tar; do
    ctr --namespace k8s.io images import --local --snapshotter native "$image"
done

kubelet --config /run/node/kubelet.json --kubeconfig /run/node/kubeconfig \
    --hostname-override "$5" --node-ip "$6" >>"/run/logs/$5.kubelet.log" 2>&1 &
# Whoever lost its parent is buried here as well.
wait $!
echo "the kubelet has ended"
exit 1
