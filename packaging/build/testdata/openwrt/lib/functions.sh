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

default_postinst() {
	local i
	for i in $(grep ^/etc/uci-defaults/ /usr/lib/opkg/info/subnetd.list); do
		# shellcheck source=/dev/null
		if [ -f "$i" ] && (. "$i"); then rm "$i"; fi
	done
	uci commit firewall
	for i in $(grep ^/etc/init.d/ /usr/lib/opkg/info/subnetd.list); do
		if [ "$PKG_UPGRADE" != 1 ]; then "$i" enable; fi
		"$i" start
	done
}

default_prerm() {
	local i
	# shellcheck source=/dev/null
	(. /usr/lib/opkg/info/subnetd.prerm-pkg) || return
	for i in $(grep ^/etc/init.d/ /usr/lib/opkg/info/subnetd.list); do
		if [ "$PKG_UPGRADE" != 1 ]; then "$i" disable; fi
		"$i" stop
	done
}
