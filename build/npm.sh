#!/usr/bin/env bash
# Installs the Node packages that a folder's lock file names, if they are not there as it names them.
# usage: npm.sh FOLDER
set -euo pipefail
cd "$1"

if [ ! -f node_modules/.package-lock.json ] || [ package-lock.json -nt node_modules/.package-lock.json ]; then
	npm ci --silent --no-audit --no-fund --ignore-scripts
	touch node_modules/.package-lock.json
fi
