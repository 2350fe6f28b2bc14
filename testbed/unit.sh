#!/usr/bin/env bash
# The unit tests, with the race detector; without it where nothing runs beside anything else, since that is seven times as
# fast there. Then the figures that the race detector would spoil. go vet is for lint.sh.
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
mapfile -t others < <(go list ./subnetd/... ./webui/... ./packaging/... ./testbed/swarm | grep -vxF "$(printf '%s\n' "${calm[@]}")")

go test -vet=off -race "${others[@]}"
go test -vet=off "${calm[@]}"
go test -vet=off -count=1 -v -run 'Thousand|TestAllocations|ManyNodes|ManyChanges' \
	./subnetd/control ./subnetd/coord ./subnetd/host/tunnel ./subnetd/underlay | grep -E '_test.go|^(ok|FAIL|---)'
