#!/usr/bin/env bash
# Make the secrets of deploy/compose.yaml: keys and random words, one file each. What is there stays.
#
#   make-secrets.sh [DIR]     by default the folder `secrets` beside this file; needs openssl
#
# The folder is closed to all but its owner. The files in it are readable, because inside a
# container another user reads them, and only the container they are handed to has them.
set -euo pipefail

NODE=tenant/node1   # as [node] tenant and name have it in node.toml

dir=${1:-$(cd "$(dirname "$0")" && pwd)/secrets}
command -v openssl >/dev/null || { echo 'make-secrets.sh: openssl is missing: apt-get install openssl' >&2; exit 2; }
umask 077
mkdir -p "$dir"
chmod 700 "$dir"

make() { # name, command that prints the contents
    local name=$1
    shift
    [ -e "$dir/$name" ] && return
    "$@" >"$dir/$name.new"
    chmod 444 "$dir/$name.new"
    mv "$dir/$name.new" "$dir/$name"
    echo "made $dir/$name"
}

word() { # what it begins with, bytes
    printf '%s%s\n' "$1" "$(od -An -v -N"$2" -tx1 /dev/urandom | tr -d ' \n')"
}

# The public half of a key as qcnode writes it: NAME+ID+KEY, where KEY is a 1 for Ed25519 and
# its 32 bytes, and ID the beginning of a digest of both.
public() { # name of the key, file of the private one
    local id key
    key() { printf '\001'; openssl pkey -in "$1" -pubout -outform DER | tail -c 32; }
    id=$({ printf '%s\n' "$1"; key "$2"; } | openssl dgst -sha256 -r | cut -c 1-8)
    printf '%s+%s+%s\n' "$1" "$id" "$(key "$2" | openssl base64 -A)"
}

connection() { # PostgreSQL's own clients read it so
    printf '[billing]\nhost=postgres\ndbname=billing\nuser=qcnode\npassword=%s\n' \
        "$(cat "$dir/postgres_password")"
}

make panel_token word '' 24
make billing_token word '' 24
make mqtt_node1 word '' 24
make mqtt_billing word '' 24
make postgres_password word '' 24
make pg_service.conf connection
# What the node and the billing server sign with, and what their signatures are checked with.
make node1_key openssl genpkey -algorithm ed25519
make node1_key.pub public "$NODE" "$dir/node1_key"
make billing_key openssl genpkey -algorithm ed25519
make billing_key.pub public billing "$dir/billing_key"
# With this the node hands in batches over HTTP while the broker is away, and can do nothing else.
make node1_billing_token word qcb_ 32
# The provider's key is yours; any word will do for the scripted provider.
make provider_api_key word scripted- 24
