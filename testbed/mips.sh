#!/usr/bin/env bash
# Runs the tests of the pure packages as MIPS programs under qemu-user: 32 bits, both byte orders, side by side. They tell fewer
# stories there (-short): each turn takes fifty times as long, and unit.sh has the full number.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

pure=(mesh config status host exit path plan dns coord/policy lan)
tested=()
for p in "${pure[@]}"; do
	if compgen -G "subnetd/$p/*_test.go" >/dev/null; then tested+=("./subnetd/$p"); fi
done

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
running=()
for arch in mips mipsle; do
	name=qemu-${arch/%le/el}
	if qemu=$(command -v "$name"); then
		GOARCH=$arch GOMIPS=softfloat CGO_ENABLED=0 go test -trimpath -vet=off -count=1 -timeout=60m -short -exec "$qemu" "${tested[@]}" >"$tmp/$arch" 2>&1 &
		running+=("$arch:$!")
	else
		echo "no $name: the pure packages are not run as $arch" >&2
		[ "${CI:-}" != true ] || exit 1
	fi
done
failed=
for job in "${running[@]}"; do
	wait "${job#*:}" || failed="$failed ${job%:*}"
	echo "as ${job%:*}:"
	cat "$tmp/${job%:*}"
done
[ -z "$failed" ] || exit 1
