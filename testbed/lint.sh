#!/usr/bin/env bash
# Formatting, go vet, staticcheck and shellcheck of the whole checkout; types and eslint of the page.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

staticcheck=honnef.co/go/tools/cmd/staticcheck@v0.8.2

unformatted=$(find . -name '*.go' -not -path './.git/*' -not -path './bin/*' -not -path '*/node_modules/*' -exec gofmt -l {} +)
if [ -n "$unformatted" ]; then
	printf 'not formatted (gofmt -w):\n%s\n' "$unformatted" >&2
	exit 1
fi
go vet ./...
go run "$staticcheck" ./...
find . \( -name '*.sh' -o -path './.ci/run' \) -not -path './.git/*' -not -path './bin/*' -not -path '*/node_modules/*' -exec shellcheck {} +
grep -rlZ --exclude=Makefile '^#!/bin/sh' packaging | xargs -0 shellcheck
build/npm.sh webui
npm --prefix webui run --silent check
for script in testbed/page/*.mjs; do
	node --check "$script"
done
