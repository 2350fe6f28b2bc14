#!/bin/sh
# shellcheck shell=dash disable=SC2013 # these lists have one word a line
# A stand-in for OpenWrt's /lib/functions.sh: what it does for a package that comes and goes, and for an init script that reads
# its configuration.
config_load() { config=$1; }
config_get() {
	eval "$1=$(uci -q get "$config.$2.$3" || echo "$4")"
}
config_get_bool() {
	config_get "$@"
	eval "case \$$1 in 1 | on | true | yes | enabled) $1=1 ;; 0 | off | false | no | disabled) $1=0 ;; *) $1=\$4 ;; esac"
}

# What the package manager knows of a package is where opkg or apk keep it.
package_files() {
	local name=${pkgname:-$(basename "${1%.*}")}
	cat "/usr/lib/opkg/info/$name.list" "/lib/apk/packages/$name.list" 2>/dev/null
}

default_postinst() {
	local i
	for i in $(package_files "$1" | grep ^/etc/uci-defaults/); do
		# shellcheck source=/dev/null
		if [ -f "$i" ] && (. "$i"); then rm "$i"; fi
	done
	uci commit firewall
	for i in $(package_files "$1" | grep ^/etc/init.d/); do
		if [ "$PKG_UPGRADE" != 1 ]; then "$i" enable; fi
		"$i" start
	done
}

default_prerm() {
	local i
	if [ -f /usr/lib/opkg/info/subnetd.prerm-pkg ]; then
		# shellcheck source=/dev/null
		(. /usr/lib/opkg/info/subnetd.prerm-pkg) || return
	fi
	for i in $(package_files "$1" | grep ^/etc/init.d/); do
		if [ "$PKG_UPGRADE" != 1 ]; then "$i" disable; fi
		"$i" stop
	done
}
