#!/usr/bin/env bash
# Builds the page into webui/dist, from where the daemon embeds it, if anything of it is newer than what is there. Without Node it
# says so, and the daemon carries a page that says how to build the real one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

without() {
	echo "the page is not built, the daemon says so in its place: $1" >&2
	exit 0
}
command -v node >/dev/null || without "node is missing"
command -v npm >/dev/null || without "npm is missing"

types=$(cd .. && "${GO:-go}" run ./webui/types)
[ "$types" = "$(cat src/status.ts)" ] || printf '%s\n' "$types" >src/status.ts
sources=(src public index.html package-lock.json vite.config.js compress.mjs build.sh)
if [ -f dist/index.html.gz ] && [ -z "$(find "${sources[@]}" -newer dist/index.html.gz -print -quit)" ]; then
	exit 0
fi
../build/npm.sh . || without "its packages cannot be had"
find dist -mindepth 1 -not -name .gitignore -delete
npm run --silent build
