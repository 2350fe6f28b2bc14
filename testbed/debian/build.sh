#!/usr/bin/env bash
# Makes a Debian 12 system with systemd, an image for a guest's disk, with the modules of the kernel and the agent of
# testbed/qemu, and prints its path. It is made once into ${SUBNETD_CACHE:-~/.cache/subnetd}/qemu/ and found there afterwards.
# Takes root.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PATH=$PATH:/usr/sbin:/sbin
guest=$("$here/../qemu/build.sh" amd64)
want=$(dirname "$guest")/debian-$(cat "$here/build.sh" <(basename "$guest") | sha256sum | cut -c1-12)

# One builder at a time: two test runs on one machine share the cache.
exec 9>"$want.lock"
flock 9
if [ ! -f "$want/disk" ]; then
	echo "making Debian into $want" >&2
	tmp=$(mktemp -d "$(dirname "$guest")/.build.XXXXXX")
	trap 'rm -rf "$tmp"' EXIT
	root=$tmp/root
	mmdebstrap --quiet --mode=root --variant=minbase --dpkgopt=force-unsafe-io \
		--dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
		--include=systemd-sysv,udev,dbus,kmod,nftables,iproute2,iputils-ping,wireguard-tools,curl,init-system-helpers bookworm "$root" >&2

	(cd "$root/usr" && cpio -id --quiet 'lib/modules/*' <"$guest/initrd")
	depmod -b "$root" "$(ls "$root/usr/lib/modules")" 2>/dev/null
	(cd "$root/usr/local" && cpio -id --quiet bin/agent <"$guest/initrd")
	cat >"$root/etc/systemd/system/agent.service" <<-UNIT
		[Unit]
		DefaultDependencies=no
		[Service]
		ExecStart=/usr/local/bin/agent /dev/virtio-ports/subnetd.agent
	UNIT
	cat >"$root/etc/udev/rules.d/99-agent.rules" <<-RULE
		SUBSYSTEM=="virtio-ports", ATTR{name}=="subnetd.agent", TAG+="systemd", ENV{SYSTEMD_WANTS}="agent.service"
	RULE
	echo debian >"$root/etc/hostname"
	echo 127.0.0.1 localhost debian >"$root/etc/hosts"
	rm -f "$root/etc/systemd/system/timers.target.wants"/* # no time is spent on housekeeping
	rm -f "$root/etc/systemd/system/getty.target.wants"/*
	mkdir "$tmp/out"
	mkfs.ext4 -q -O ^has_journal -d "$root" "$tmp/out/disk" 800M
	mv "$tmp/out" "$want"
fi
echo "$want/disk"
