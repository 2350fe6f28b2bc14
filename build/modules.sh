#!/usr/bin/env bash
# Prints flags for `go build`, by which files of ours stand in for others' of the same name:
#  -modfile OUT/go.mod, the project's own with golang.zx2c4.com/wireguard taken from a copy in OUT/wireguard, with the files of
#    build/wireguard, and with build/jsonv2 for github.com/go-json-experiment/json;
#  -overlay OUT/overlay.json, the files of build/_std for those of Go's own packages. Their tests are there, too;
#  -toolexec OUT/tool, for a linker that leaves out the line numbers of Go's own packages, see build/_link.
# usage: modules.sh OUT (a folder inside the project)
set -euo pipefail
out=${1%/}
cd "$(dirname "${BASH_SOURCE[0]}")/.."

go mod download golang.zx2c4.com/wireguard
theirs=$(go list -m -f '{{.Dir}}' golang.zx2c4.com/wireguard)
mkdir -p "$out"
rm -rf "$out/wireguard"
cp -r "$theirs" "$out/wireguard"
chmod -R u+w "$out/wireguard"
for file in build/wireguard/*.go; do
	name=$(basename "$file")
	if [ ! -f "$theirs/device/$name" ]; then
		echo "golang.zx2c4.com/wireguard has no device/$name any more, so $file can stand in for nothing" >&2
		exit 1
	fi
	cp "$file" "$out/wireguard/device/$name"
done
cp go.mod go.sum "$out/"
go mod edit -replace "golang.zx2c4.com/wireguard=./$out/wireguard" \
	-replace github.com/go-json-experiment/json=./build/jsonv2 "$out/go.mod"

go=$(go env GOROOT)/src
begin='{"Replace": {'
while read -r file; do
	theirs=$go/${file#build/_std/}
	if [[ $file != *_test.go && ! -f $theirs ]]; then
		echo "there is no $theirs any more, so $file can stand in for nothing" >&2
		exit 1
	fi
	printf '%s\n\t"%s": "%s"' "$begin" "$theirs" "$PWD/$file"
	begin=,
done < <(find build/_std -name '*.go' | sort) >"$out/overlay.json"
printf '\n}}\n' >>"$out/overlay.json"

file=$go/cmd/link/internal/ld/pcln.go
theirs='pcSyms := \[\]loader.Sym{pcsp, pcfile, pcline}'
if [ "$(grep -c "$theirs" "$file")" != 1 ]; then
	echo "$file is not what build/_link is for" >&2
	exit 1
fi
sed "s/$theirs/pcSyms := tablesOf(ldr.SymName(s), pcsp, pcfile, pcline)/" "$file" >"$out/_pcln.go"
printf '{"Replace": {\n\t"%s": "%s",\n\t"%s": "%s"\n}}\n' "$file" "$PWD/$out/_pcln.go" \
	"${file%/*}/lines.go" "$PWD/build/_link/lines.go" >"$out/link.json"
env -u GOOS -u GOARCH go build -trimpath -overlay "$out/link.json" -o "$out/link" cmd/link
cp build/_link/tool "$out/tool"

linker="-toolexec $PWD/$out/tool"
case $PWD in *[[:space:]]*) # go build takes no tool there
	linker=
	echo "the path of this folder has a space: the program keeps Go's line numbers, and is a tenth larger" >&2 ;;
esac
echo "-modfile $out/go.mod -overlay $out/overlay.json $linker"
