#!/usr/bin/env bash
# Known vulnerabilities of what requirements/lock.txt pins, and a bill of materials of it. Called by `make audit`.
#
#   infra/audit.sh [FOLDER]      writes FOLDER/sbom.json (CycloneDX); FOLDER: .ruvllm/audit
#
# Ends with 0: nothing known; 1: something is, and is listed; 3: the index or the advisories could not be reached, so
# that nothing is known either way.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

folder=${1:-.ruvllm/audit}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

unreachable() {
    echo "audit: not done, $1; run it where the network reaches the index" >&2
    exit 3
}

"${PYTHON:-python3}" -m venv "$scratch"
"$scratch/bin/python" -m pip install --quiet --disable-pip-version-check pip-audit==2.10.1 2>"$scratch/why" ||
    unreachable "pip-audit cannot be installed ($(tail -n 1 "$scratch/why"))"

mkdir -p "$folder"
audit() { # audit FORMAT: asks for the advisories of every pin, installs nothing
    "$scratch/bin/pip-audit" --requirement requirements/lock.txt --no-deps --disable-pip --progress-spinner off \
        --format "$1" 2>"$scratch/why"
}

# Advisories found end it with 1 too; what it could not reach leaves no document.
audit cyclonedx-json >"$scratch/sbom.json" || true
[ -s "$scratch/sbom.json" ] || unreachable "the advisories cannot be read ($(tail -n 1 "$scratch/why"))"
mv "$scratch/sbom.json" "$folder/sbom.json"
echo "bill of materials: $folder/sbom.json"
audit columns || {
    cat "$scratch/why" >&2
    exit 1
}
echo "audit: nothing is known against requirements/lock.txt"
