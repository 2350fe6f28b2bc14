#!/bin/sh
# The guest's first process: makes the machine usable and keeps the agent, whose end is the machine's end.
export PATH=/bin HOME=/root
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox --install -s /bin 2>/dev/null
if [ "$(uname -m)" = mips ]; then
	# The Malta's firmware, which is not there, would make the interrupts of its PCI slots level-triggered: otherwise cards
	# that share one lose theirs for good.
	printf '\000\014' | dd of=/dev/port bs=1 seek=$((0x4d0)) conv=notrunc 2>/dev/null
	# QEMU loses an interrupt of a MIPS CPU now and then, and with the CPU's own timer lost the guest stops for 26 s. The
	# board's timer ticks on, and each tick brings back what was lost.
	echo MIPS >/sys/devices/system/clockevents/clockevent0/unbind_device
fi
mkdir -p /dev/net /dev/pts /dev/shm
[ -e /dev/net/tun ] || mknod /dev/net/tun c 10 200 # opening it loads the module
mount -t devpts devpts /dev/pts
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
mkdir -p /run/netns
ln -s /proc/self/fd /dev/fd
ln -s fd/0 /dev/stdin
ln -s fd/1 /dev/stdout
ln -s fd/2 /dev/stderr

modprobe -q -a virtio_pci virtio_mmio virtio_console virtio_net virtio_blk virtio-rng
hostname "$(cat /etc/hostname)"
ip link set lo up

# /etc/nics: MAC and name of each interface.
while read -r mac name; do
	for nic in /sys/class/net/*; do
		[ "$(cat "$nic/address")" != "$mac" ] || ip link set "${nic##*/}" name "$name" up
	done
done </etc/nics

if [ -b /dev/vda ]; then
	modprobe -q -a crc32c_generic ext4
	mount -t ext4 /dev/vda /data
fi

for port in /sys/class/virtio-ports/*; do
	if [ "$(cat "$port/name")" = subnetd.agent ]; then
		agent "/dev/${port##*/}"
	fi
done
sync
poweroff -f
