#!/usr/bin/env bash
# A home mesh on this machine, from bin/subnetd: coordinator, relay, STUN and its own node, with everything it keeps in
# a folder of its own. Prints the line by which others join; Ctrl-C undoes all of it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ "$(id -u)" -ne 0 ]; then
	echo "make run makes a network interface and needs root: try sudo make run" >&2
	exit 1
fi
dir=$(mktemp -d)
socket="$dir/socket"
printf '[lan]\nexpose = "all"\n[dns]\nhook = false\n' >"$dir/subnetd.toml"

pid=
undo() {
	trap '' INT TERM
	if [ -n "$pid" ]; then
		bin/subnetd down --socket "$socket" || true
		kill "$pid" 2>/dev/null || true
		wait "$pid" || true
	fi
	rm -rf "$dir"
}
trap undo EXIT
trap 'exit 130' INT TERM

# A session of its own: Ctrl-C is for this script, which has it put the machine back first.
setsid bin/subnetd run --config "$dir/subnetd.toml" --state "$dir/state" --socket "$socket" &
pid=$!
until [ -S "$socket" ]; do
	kill -0 "$pid"
	sleep 0.05
done
bin/subnetd up --socket "$socket" --timeout 60s
echo
bin/subnetd status --socket "$socket"
echo
bin/subnetd invite --socket "$socket" --reusable
echo
echo "The same address shows the coordinator's page. More: bin/subnetd nodes --socket $socket"
echo "Ctrl-C ends the mesh and puts this machine back."
wait "$pid"
