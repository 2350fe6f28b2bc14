#!/usr/bin/env bash
# Installs what the tests need and this Debian machine lacks; with the word guests, also what emulated routers need, with the
# word images, what makes those of the appliance. Says nothing and touches nothing when all is there, but for one limit of
# the kernel's. The browser's driver is no package of Debian's: npm has it.
set -euo pipefail

# program:package
needed=(nft:nftables ip:iproute2 ping:iputils-ping iperf3:iperf3 xz:xz-utils mksquashfs:squashfs-tools
	shellcheck:shellcheck curl:curl conntrack:conntrack flock:util-linux qemu-mipsel:qemu-user gcc:build-essential
	dig:bind9-dnsutils drill:ldnsutils dnsmasq:dnsmasq-base dhcpd:isc-dhcp-server rdisc6:ndisc6 busybox:busybox systemd-analyze:systemd
	mkfs.fat:dosfstools mcopy:mtools cpio:cpio
	certbot:certbot certutil:libnss3-tools openssl:openssl
	node:nodejs npm:npm chromium:chromium)
for word; do
	case $word in
	guests) needed+=(qemu-system-x86_64:qemu-system-x86 qemu-system-aarch64:qemu-system-arm qemu-system-mipsel:qemu-system-mips
		depmod:kmod mkfs.ext4:e2fsprogs) ;;
	debian) needed+=(qemu-system-x86_64:qemu-system-x86 depmod:kmod mkfs.ext4:e2fsprogs mmdebstrap:mmdebstrap) ;;
	images) needed+=(depmod:kmod grub-mkimage:grub-common) ;;
	esac
done

PATH=$PATH:/usr/sbin:/sbin
missing=()
for pair in "${needed[@]}"; do
	command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
done
if [ "${#missing[@]}" -gt 0 ]; then
	if [ "$(id -u)" -ne 0 ]; then
		echo "missing packages, install them as root: ${missing[*]}" >&2
		exit 0
	fi
	export DEBIAN_FRONTEND=noninteractive
	apt-get update -q
	apt-get install -q -y --no-install-recommends "${missing[@]}"
fi
testbed=$(dirname "${BASH_SOURCE[0]}")
"$testbed/../build/npm.sh" "$testbed/page"

# All namespaces share the kernel's table of neighbours, which several crowds at a time would fill.
for table in /proc/sys/net/ipv4/neigh /proc/sys/net/ipv6/neigh; do
	limit=$table/default/gc_thresh3
	if [ -w "$limit" ] && [ "$(<"$limit")" -lt 16384 ]; then echo 16384 >"$limit"; fi
done
