#!/usr/bin/env bash
# Makes what a guest boots: Debian's kernel for an architecture and a small initramfs of Debian's programs, the modules
# that a router needs, and our agent. Prints the folder that holds them as `kernel` and `initrd`.
# Each is made once into ${SUBNETD_CACHE:-~/.cache/subnetd}/qemu/<arch>-<digest of this recipe>/ and found there afterwards.
# The machine's own packages and architectures stay as they are: apt works in a folder that is removed.
# usage: build.sh [amd64|arm64|armv7|mipsle|insncount]...
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PATH=$PATH:/usr/sbin:/sbin

packages=(busybox-static dash iproute2 nftables wireguard-tools iperf3 conntrack iputils-ping)
# The shell is not busybox's: that one takes its own ip and ping before the real ones.
programs=(dash ip tc ss nft wg iperf3 conntrack ping)

# Modules by name; one that a kernel has not is built in, or belongs to another architecture. What they need is added.
modules=(virtio_pci virtio_mmio virtio_net virtio_console virtio_blk virtio_rng virtio-rng ext4 crc32c_generic crc32c_intel
	wireguard tun veth bridge stp dummy ifb 8021q macvlan udp_diag tcp_diag inet_diag netlink_diag
	sch_netem sch_tbf sch_fq sch_fq_codel sch_htb sch_ingress cls_matchall cls_u32 act_mirred act_police
	xt_mark xt_conntrack xt_comment xt_MASQUERADE xt_nat xt_tcpudp xt_addrtype nft_compat)
# And all of these, in every folder of netfilter.
netfilter='/net/(netfilter|ipv4/netfilter|ipv6/netfilter)/(nft_|nf_|nfnetlink)[^/]*\.ko$'

settings() {
	case $1 in
	amd64) debian=amd64 kernel=linux-image-cloud-amd64 go=(GOARCH=amd64) ;;
	arm64) debian=arm64 kernel=linux-image-cloud-arm64 go=(GOARCH=arm64) ;;
	armv7) debian=armhf kernel=linux-image-armmp go=(GOARCH=arm GOARM=7) ;;
	mipsle) debian=mipsel kernel=linux-image-4kc-malta go=(GOARCH=mipsle GOMIPS=softfloat) ;;
	*)
		echo "no guest is made for $1: amd64, arm64, armv7 or mipsle" >&2
		exit 2
		;;
	esac
}

# apt_root: an apt of its own for one architecture, with the sources, keys and settings of this machine.
apt_root() {
	local root=$1
	mkdir -p "$root"/{etc,state/lists/partial,cache/archives/partial}
	: >"$root/state/status"
	{
		[ ! -f /etc/apt/apt.conf ] || cat /etc/apt/apt.conf
		cat <<-CONF
			#clear APT::Update;
			#clear DPkg;
			APT::Architecture "$debian";
			APT::Architectures { "$debian"; };
			APT::Install-Recommends "false";
			APT::Sandbox::User "";
			Acquire::Languages "none";
			Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
			Dir::State "$root/state";
			Dir::State::status "$root/state/status";
			Dir::Cache "$root/cache";
			Dir::Etc::preferences "/dev/null";
			Dir::Etc::preferencesparts "/dev/null";
		CONF
	} >"$root/etc/apt.conf"
	echo "Dir::Etc::main \"$root/etc/apt.conf\";" >"$root/etc/first.conf"
	export APT_CONFIG=$root/etc/first.conf
}

# unpack: fetches the kernel, the packages and the libraries below them. Installers, perl and the like are left out.
unpack() {
	local root=$1 to=$2 names
	mkdir -p "$to" "$root/debs"
	apt-get -q=2 update >&2 || true # a package that is missed then is asked for below
	names=$(apt-get -q=2 -s install "$kernel" "${packages[@]}" | awk '$1 == "Inst" {print $2}' |
		grep -E "^(lib|zlib|linux-image-[0-9]|$(IFS='|' && echo "${packages[*]}")\$)" | grep -v -E '^lib.*(perl|-common$)')
	(cd "$root/debs" && xargs apt-get -q=2 download <<<"$names" >&2)
	local deb
	for deb in "$root"/debs/*.deb; do
		dpkg-deb -x "$deb" "$to"
	done
}

# needs_of FILE: the libraries that a program or library names.
needs_of() {
	readelf -d "$1" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p'
	readelf -l "$1" | sed -n 's/.*program interpreter: .*\/\([^/]*\)\]/\1/p'
}

# copy_library NAME: that library and all below it.
copy_library() {
	local from=$1 to=$2 name=$3 path need
	[ ! -e "$to/lib/$name" ] || return 0
	path=$(find "$from/lib" "$from/usr/lib" -name "$name" -print -quit)
	[ -n "$path" ] || {
		echo "no package holds $name" >&2
		return 1
	}
	cp -L "$path" "$to/lib/$name"
	for need in $(needs_of "$path"); do
		copy_library "$from" "$to" "$need"
	done
}

copy_programs() {
	local from=$1 to=$2 program path need
	mkdir -p "$to"/{bin,lib,usr,proc,sys,dev,tmp,root,run,var/lib,etc,data}
	ln -s bin "$to/sbin"
	ln -s lib "$to/lib64"
	ln -s ../bin ../lib "$to/usr/"
	ln -s ../bin "$to/usr/sbin"
	ln -s ../run "$to/var/run"
	cp "$from/bin/busybox" "$to/bin/busybox"
	ln -s dash "$to/bin/sh"
	ln -s busybox "$to/bin/modprobe" # the kernel calls it
	for program in "${programs[@]}"; do
		path=$(find "$from"/{bin,sbin,usr/bin,usr/sbin} -name "$program" ! -type l -print -quit)
		[ -n "$path" ] || {
			echo "no package holds the program $program" >&2
			return 1
		}
		cp "$path" "$to/bin/$program"
		for need in $(needs_of "$path"); do
			copy_library "$from" "$to" "$need"
		done
	done
}

copy_modules() {
	local from=$1 to=$2 version list
	version=$(basename "$from"/lib/modules/*)
	list=$root/modules
	depmod -b "$from" "$version"
	(cd "$from/lib/modules/$version" &&
		awk -F: -v want="${modules[*]}" -v all="$netfilter" '
			BEGIN { n = split(want, w, " "); for (i = 1; i <= n; i++) names[w[i]] = 1 }
			{ name = $1; sub(/.*\//, "", name); sub(/\.ko$/, "", name) }
			name in names || $1 ~ all { print $1; n = split($2, need, " "); for (i = 1; i <= n; i++) print need[i] }' modules.dep |
		sort -u >"$list" && xargs cp --parents -t "$to/modules.tmp" <"$list" && cp modules.{order,builtin,builtin.modinfo} "$to/modules.tmp")
	mkdir -p "$to/lib/modules"
	mv "$to/modules.tmp" "$to/lib/modules/$version"
	depmod -b "$to" "$version"
	rm -f "$to/lib/modules/$version"/*.bin "$to/lib/modules/$version"/modules.{order,builtin.modinfo,symbols,devname} # kmod's, not busybox's
}

# guest ARCH: makes one into a temporary folder and renames it, so that what exists is whole.
guest() {
	local arch=$1 want="$cache/$1-$digest"
	if [ ! -d "$want" ]; then
		settings "$arch"
		echo "making the guest $arch into $want" >&2
		local root=$tmp/$arch
		mkdir -p "$root/rootfs/modules.tmp" "$root/out"
		apt_root "$root/apt"
		unpack "$root/apt" "$root/unpacked"
		copy_programs "$root/unpacked" "$root/rootfs"
		copy_modules "$root/unpacked" "$root/rootfs"
		install -m 755 "$here/init.sh" "$root/rootfs/init"
		(cd "$here" && env GOOS=linux CGO_ENABLED=0 "${go[@]}" go build -trimpath -ldflags '-s -w' -o "$root/rootfs/bin/agent" ./agent)
		case $arch in
		armv7 | mipsle) "$here/bare.sh" "$arch" "$root"/unpacked/boot/vmlinuz-* "$root/out/kernel" ;;
		*) cp "$root"/unpacked/boot/vmlinuz-* "$root/out/kernel" ;;
		esac
		(cd "$root/rootfs" && find . | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0 >"$root/out/initrd")
		mv "$root/out" "$want"
		rm -rf "$root"
	fi
	echo "$want"
}

# insncount: the plugin that counts a guest's instructions.
insncount() {
	local want
	want="$cache/insncount-$(sha256sum <"$here/insncount/insncount.c" | cut -c1-12)"
	if [ ! -d "$want" ]; then
		mkdir "$tmp/insncount"
		gcc -O2 -Wall -Wextra -shared -fPIC -o "$tmp/insncount/insncount.so" "$here/insncount/insncount.c"
		mv "$tmp/insncount" "$want"
	fi
	echo "$want"
}

digest=$(cd "$here" && cat build.sh bare.sh init.sh agent/main.go wire/wire.go | sha256sum | cut -c1-12)
cache=${SUBNETD_CACHE:-$HOME/.cache/subnetd}/qemu
mkdir -p "$cache"

# One builder at a time: two test runs on one machine share the cache.
exec 9>"$cache/.lock"
flock 9

tmp=$(mktemp -d "$cache/.build.XXXXXX")
trap 'rm -rf "$tmp"' EXIT

[ $# -gt 0 ] || set -- amd64 arm64 armv7 mipsle insncount
for what; do
	case $what in
	insncount) insncount ;;
	*) guest "$what" ;;
	esac
done
