#!/usr/bin/env bash
# Fetches what an image is made of beside our own programs, all of it Debian's: the kernel and the modules that a router
# needs, the programs that make and mend the data's file system, certificates, and what a board's firmware loads first.
# Each is made once into ${SUBNETD_CACHE:-~/.cache/subnetd}/firmware/<arch>-<digest of this recipe>/ and found there
# afterwards; its name is printed. The machine's own packages and architectures stay as they are.
#
#   vmlinuz          as the package has it
#   early, modules   lists of modules: what finds the disk and the root on it, and all others
#   root/            sbin, lib, etc/ssl, lib/modules/VERSION: the part of the root that is not ours
#   boot/            for arm64: the Raspberry Pi's firmware and device trees; for amd64: GRUB
#
# usage: parts.sh mipsel|armhf|arm64|amd64
set -euo pipefail
export LC_ALL=C

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PATH=$PATH:/usr/sbin:/sbin

# Modules by name; one that a kernel has not is built in, or belongs to another architecture. What they need is added.
early=(virtio_pci virtio_mmio virtio_blk sd_mod ata_piix pata_acpi ahci nvme usb_storage uas xhci_pci xhci_plat_hcd ehci_pci ehci_platform
	ohci_pci uhci_hcd dwc2 mmc_block sdhci_pci sdhci_acpi sdhci_iproc bcm2835 i2c_bcm2835 raspberrypi_hwmon squashfs
	pcie_brcmstb reset_raspberrypi gpio_raspberrypi_exp phy_generic)
other=(ext4 crc32c_generic crc32c_intel overlay
	virtio_net virtio_rng e1000 e1000e igb igc r8169 realtek tg3 pcnet32 8139cp 8139too bcmgenet unimac_mdio mdio_bcm_unimac broadcom bcm_phy_lib
	lan78xx microchip smsc95xx smsc cdc_ether cdc_ncm rndis_host ax88179_178a asix r8152 usbnet
	wireguard tun bridge stp llc dummy ifb 8021q macvlan veth ppp_generic pppox pppoe
	udp_diag tcp_diag inet_diag netlink_diag sch_fq_codel sch_cake sch_fq sch_tbf sch_htb sch_ingress cls_matchall act_mirred
	i6300esb iTCO_wdt sp5100_tco softdog bcm2835_wdt bcm2835_rng iproc_rng200 rtc_pl031 rtc_cmos qemu_fw_cfg)
# And all of these, in every folder of netfilter.
netfilter='/net/(netfilter|ipv4/netfilter|ipv6/netfilter)/(nft_|nf_|nfnetlink)[^/]*\.ko$'

packages=(e2fsprogs busybox-static ca-certificates)
programs=(mkfs.ext4 e2fsck busybox) # the last one is the shell of the bench's console

settings() {
	case $1 in
	mipsel) kernel=linux-image-4kc-malta ;;
	armhf) kernel=linux-image-armmp ;;
	arm64) kernel=linux-image-arm64 packages+=(raspi-firmware) ;;
	amd64) kernel=linux-image-amd64 packages+=(grub-pc-bin) ;;
	*)
		echo "there are parts for mipsel, armhf, arm64 and amd64, none for $1" >&2
		exit 2
		;;
	esac
}

# apt_root: an apt of its own for one architecture, with the sources, keys and settings of this machine. The Raspberry Pi's
# firmware is in a section of its own.
apt_root() {
	local root=$1
	mkdir -p "$root"/{etc,sources,state/lists/partial,cache/archives/partial}
	: >"$root/state/status"
	cp /etc/apt/sources.list.d/*.{list,sources} "$root/sources/" 2>/dev/null || true
	if [ "$debian" = arm64 ]; then
		sed -i 's/^\(Components: main\)$/\1 non-free-firmware/; s/^\(deb .* main\)$/\1 non-free-firmware/' "$root/sources"/*
	fi
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
			Dir::Etc::sourceparts "$root/sources";
			Dir::Etc::preferences "/dev/null";
			Dir::Etc::preferencesparts "/dev/null";
		CONF
	} >"$root/etc/apt.conf"
	echo "Dir::Etc::main \"$root/etc/apt.conf\";" >"$root/etc/first.conf"
	export APT_CONFIG=$root/etc/first.conf
}

# unpack: fetches the kernel, the packages and the libraries below them. What only installs things is left out.
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
	chmod 755 "$to/lib/$name"
	for need in $(needs_of "$path"); do
		copy_library "$from" "$to" "$need"
	done
}

copy_programs() {
	local from=$1 to=$2 program path need
	mkdir -p "$to"/{sbin,lib,etc/ssl/certs}
	for program in "${programs[@]}"; do
		path=$(find "$from"/{bin,sbin,usr/sbin} -name "$program" -print -quit)
		cp -L "$path" "$to/sbin/$program"
		for need in $(needs_of "$path"); do
			copy_library "$from" "$to" "$need"
		done
	done
	find "$from/usr/share/ca-certificates" -name '*.crt' -print0 | sort -z | xargs -0 cat >"$to/etc/ssl/certs/ca-certificates.crt"
}

# with_needs NAME...: the files of these modules, and of all that they need, in modules.dep's names.
with_needs() {
	awk -F: -v want="$*" -v all="${all:-}" '
		BEGIN { n = split(want, w, " "); for (i = 1; i <= n; i++) names[w[i]] = 1 }
		{ name = $1; sub(/.*\//, "", name); sub(/\.ko$/, "", name); gsub(/-/, "_", name) }
		name in names || all != "" && $1 ~ all { print $1; n = split($2, need, " "); for (i = 1; i <= n; i++) print need[i] }' modules.dep | sort -u
}

copy_modules() {
	local from=$1 out=$2 version to
	version=$(basename "$from"/lib/modules/*)
	to=$out/root/lib/modules/$version
	depmod -b "$from" "$version"
	mkdir -p "$to"
	(cd "$from/lib/modules/$version" && with_needs "${early[@]}" >"$out/early" &&
		all=$netfilter with_needs "${early[@]}" "${other[@]}" >"$out/modules" &&
		xargs cp --parents -t "$to" <"$out/modules" && cp modules.{order,builtin,builtin.modinfo} "$to")
	find "$to" -name '*.ko' -exec chmod 644 {} +
	depmod -b "$out/root" "$version"
	rm -f "$to"/*.bin "$to"/modules.{order,builtin.modinfo,symbols,devname,softdep} # kmod's
}

copy_boot() {
	local from=$1 to=$2 dtb
	mkdir -p "$to"
	case $debian in
	arm64)
		cp "$from"/usr/lib/raspi-firmware/{bootcode.bin,start.elf,fixup.dat,start4.elf,fixup4.dat} "$to/"
		for dtb in "$from"/usr/lib/linux-image-*/broadcom/bcm2{710,711,837}*-rpi-{3,4,cm4,zero-2}*.dtb; do
			[ ! -f "$dtb" ] || cp "$dtb" "$to/"
		done
		;;
	amd64) cp -r "$from/usr/lib/grub/i386-pc" "$to/i386-pc" ;;
	esac
}

debian=${1:?usage: parts.sh ARCH}
settings "$debian"
cache=${SUBNETD_CACHE:-$HOME/.cache/subnetd}/firmware
digest=$(sha256sum <"$here/parts.sh" | cut -c1-12)
want=$cache/$debian-$digest
mkdir -p "$cache"

# One builder at a time: two builds on one machine share the cache.
exec 9>"$cache/.lock"
flock 9
if [ ! -d "$want" ]; then
	echo "fetching the parts for $debian into $want" >&2
	tmp=$(mktemp -d "$cache/.parts.XXXXXX")
	trap 'rm -rf "$tmp"' EXIT
	mkdir -p "$tmp/out/root"
	apt_root "$tmp/apt"
	unpack "$tmp/apt" "$tmp/unpacked"
	copy_programs "$tmp/unpacked" "$tmp/out/root"
	copy_modules "$tmp/unpacked" "$tmp/out"
	copy_boot "$tmp/unpacked" "$tmp/out/boot"
	cp "$tmp"/unpacked/boot/vmlinuz-* "$tmp/out/vmlinuz"
	mv "$tmp/out" "$want" # what exists is whole
fi
echo "$want"
