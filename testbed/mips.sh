#!/usr/bin/env bash
# Runs the tests of the pure packages as MIPS programs under qemu-user: 32 bits, both byte orders.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

pure=(mesh config status host exit path plan dns coord/policy)
for pair in mips:qemu-mips mipsle:qemu-mipsel; do
	arch=${pair%%:*}
	if ! qemu=$(command -v "${pair#*:}"); then
		echo "no ${pair#*:}: the pure packages are not run as $arch" >&2
		[ "${CI:-}" != true ] || exit 1
		continue
	fi
	for p in "${pure[@]}"; do
		compgen -G "subnetd/$p/*_test.go" >/dev/null || continue
		GOARCH=$arch GOMIPS=softfloat CGO_ENABLED=0 go test -exec "$qemu" "./subnetd/$p"
	done
done
