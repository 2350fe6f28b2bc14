#!/usr/bin/env bash
# The unit tests, with the race detector; without it where nothing runs beside anything else, since that is seven times as
# fast there. Then the figures that the race detector would spoil, and long walks. go vet is for lint.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

calm=(path simnet plan exit coord/policy) # packages

for p in "${calm[@]}"; do
	if grep -nE '^\s*go [a-z]|\.Go\(|^\s*"sync|synctest' "subnetd/$p"/*.go; then
		echo "subnetd/$p starts what runs beside it: its tests need the race detector" >&2
		exit 1
	fi
done
mapfile -t calm < <(go list "${calm[@]/#/./subnetd/}")
mapfile -t others < <(go list ./subnetd/... ./webui/... ./packaging/... ./firmware/... ./testbed/swarm | grep -vxF "$(printf '%s\n' "${calm[@]}")")

# From the cache come packages, never results (-count=1). With -trimpath these are also those that a clone in another directory
# built; without the race detector lint.sh and lab.sh have built them already, without it. On a busy machine a
# package may take long.
flags=(-vet=off -count=1 -timeout=60m)

go test "${flags[@]}" -trimpath -race "${others[@]}"
go test "${flags[@]}" "${calm[@]}"
# Go's own packages, with the files that stand in for theirs.
build/modules.sh bin/unit >/dev/null
go test "${flags[@]}" -overlay bin/unit/overlay.json vendor/golang.org/x/net/idna
go test "${flags[@]}" -v -run 'Thousand|TestAllocations|ManyNodes|ManyChanges|TestWalk$|TestSessionOracle' \
	./subnetd/control ./subnetd/coord ./subnetd/host/tunnel ./subnetd/underlay | grep -E '_test.go|^(ok|FAIL|---)'
