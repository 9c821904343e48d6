#!/usr/bin/env bash
# Make the secrets of deploy/compose.yaml: random words, one file each. What is there stays.
#
#   make-secrets.sh [DIR]     by default the folder `secrets` beside this file
#
# The folder is closed to all but its owner. The files in it are readable, because inside a
# container another user reads them, and only the container they are handed to has them.
set -euo pipefail

dir=${1:-$(cd "$(dirname "$0")" && pwd)/secrets}
mkdir -p "$dir"
chmod 700 "$dir"

make() { # name, contents
    [ -e "$dir/$1" ] && return
    printf '%s\n' "$2" >"$dir/$1.new"
    chmod 444 "$dir/$1.new"
    mv "$dir/$1.new" "$dir/$1"
    echo "made $dir/$1"
}

word() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }

make panel_token "$(word)"
make billing_token "$(word)"
make mqtt_node1 "$(word)"
make mqtt_billing "$(word)"
make postgres_password "$(word)"
# How the billing server finds its database, as PostgreSQL's own clients read it.
make pg_service.conf "[billing]
host=postgres
dbname=billing
user=qcnode
password=$(cat "$dir/postgres_password")"
# The provider's key is yours; any word will do for the scripted provider.
make provider_api_key "scripted-$(word)"
