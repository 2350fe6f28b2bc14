#!/usr/bin/env bash
# Takes a 32-bit kernel out of the file in which it unpacks itself, and puts it into a file that QEMU loads: xz is dear in
# an emulated CPU, two and a half of the six seconds in which a guest boots.
# usage: bare.sh armv7|mipsle VMLINUZ OUTPUT
set -euo pipefail
export LC_ALL=C

arch=$1 packed=$2 out=$3
# The first ones are in the code that looks for them.
offset=$(grep -obUaP '\xfd7zXZ\x00' "$packed" | tail -n 1 | cut -d: -f1)
tail -c +$((offset + 1)) "$packed" | xz -dc --single-stream >"$out.bare"
size=$(stat -c %s "$out.bare")

# words ORDER NUMBER...: 32-bit numbers, of the byte order le or be.
words() {
	local order=$1 n h
	shift
	for n; do
		h=$(printf %08x "$n")
		if [ "$order" = le ]; then
			h=${h:6:2}${h:4:2}${h:2:2}${h:0:2}
		fi
		printf %b "\\x${h:0:2}\\x${h:2:2}\\x${h:4:2}\\x${h:6:2}"
	done
}

case $arch in
armv7)
	# U-Boot's header. The kernel begins with its entry, 32 KiB behind the 2 MiB of the board's memory that Debian's
	# leaves to Qualcomm's.
	start=0x40208000
	{
		words be 0x27051956 0 0 "$size" $start $start 0 0x05020200 # Linux, ARM, kernel, not packed
		head -c 32 /dev/zero                                       # its name
	} >"$out"
	;;
mipsle)
	# An ELF file of one segment. Where the kernel is entered is known to the code before it that unpacks it: it loads
	# an address of the unpacked kernel into t9 and calls it.
	start=0x80100000
	entry=$(head -c "$offset" "$packed" | od -An -v -w4 --endian=little -tx4 | awk '
		{ op = substr($1, 1, 4) }
		op == "3c19" { hi = substr($1, 5) }
		op == "3739" { lo = substr($1, 5) }
		$1 == "0320f809" && hi "" >= "8010" && hi "" < "810f" && !entry { entry = "0x" hi lo; print entry }')
	[ -n "$entry" ] || {
		echo "$packed: where is the kernel entered?" >&2
		exit 1
	}
	{
		words le 0x464c457f 0x00010101 0 0 # ELF, 32 bits, little endian
		words le 0x00080002 1 "$entry" 52 0 0x70001005 0x00200034 1 0
		words le 1 84 $start $start "$size" "$size" 7 4
	} >"$out"
	;;
esac
cat "$out.bare" >>"$out"
rm "$out.bare"
