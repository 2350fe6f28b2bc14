#!/bin/sh
# The first process of a guest that is a Debian system: makes its disk the root, and leaves it to systemd.
export PATH=/bin
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox --install -s /bin 2>/dev/null
mount -t proc proc /proc
modprobe -q -a virtio_pci virtio_blk crc32c_generic ext4
mkdir /system
mount -t ext4 /dev/vda /system || poweroff -f
cp -r /packages /system/
umount /proc
exec switch_root /system /sbin/init
