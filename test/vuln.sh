#!/bin/bash
# vuln.sh: known vulnerabilities in what the module calls, built with the oldest Go that go.mod admits. The Go vulnerability
# database is read from its own module, golang.org/x/vulndb, by way of the module proxy, so that no other site is asked.
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/.."
oldest=$(sed -n 's/^go //p' go.mod)
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
db=$(cd "$dir" && go mod download -json golang.org/x/vulndb@latest | sed -n 's/^\t"Dir": "\(.*\)",\?$/\1/p')
[ -d "$db/data/osv" ] || { echo "vuln.sh: golang.org/x/vulndb has no data/osv" >&2; exit 1; }
# Built by the newer Go, and run with the older one, whose standard library it then looks at.
GOBIN=$dir go install golang.org/x/vuln/cmd/govulncheck@v1.9.0
echo "vulnerabilities known to ${db##*@}, with go$oldest"
GOTOOLCHAIN=go$oldest "$dir/govulncheck" -db "file://$db/data/osv" ./...
