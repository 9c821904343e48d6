#!/usr/bin/env bash
# Make the certificates of a site: one authority, one server, one for each node.
#
#   make-certs.sh DIR ca                        the authority; its key stays in DIR, keep DIR safe
#   make-certs.sh DIR server NAME [NAME|IP ...] the broker, by every name it is reached under
#   make-certs.sh DIR client NAME               a node, `billing` or `monitor`; NAME is its user name
#
# Keys are EC P-256 and readable by their owner only. Nothing is ever overwritten: to renew a
# certificate, move the old one away first and make it again.
set -euo pipefail
umask 077

fail() { printf 'make-certs.sh: %s\n' "$1" >&2; exit 2; }
usage() { sed -n '4,6s/^# *//p' "$0" >&2; exit 2; }

[ $# -ge 2 ] || usage
command -v openssl >/dev/null || fail 'openssl is missing: apt-get install openssl'
dir=$1 what=$2
shift 2
mkdir -p "$dir"

new_key() { # file without its ending
    [ ! -e "$1.key" ] && [ ! -e "$1.crt" ] || fail "$1.key or $1.crt is there already: move it away first"
    openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1.key" 2>/dev/null
}

sign() { # file without its ending, common name, days, extensions
    [ -f "$dir/ca.key" ] || fail "no authority in $dir: run 'make-certs.sh $dir ca' first"
    new_key "$1"
    openssl req -new -key "$1.key" -subj "/CN=$2" |
        openssl x509 -req -CA "$dir/ca.crt" -CAkey "$dir/ca.key" -days "$3" \
            -set_serial "0x$(openssl rand -hex 16 | sed 's/^./1/')" \
            -extfile <(printf '%s\n' 'basicConstraints=critical,CA:FALSE' \
                'keyUsage=critical,digitalSignature' 'subjectKeyIdentifier=hash' \
                'authorityKeyIdentifier=keyid' "$4") \
            -out "$1.crt" 2>/dev/null
    chmod 644 "$1.crt"
    printf '%s.crt: %s\n' "$1" "$(openssl x509 -noout -enddate -in "$1.crt")"
}

case $what in
ca)
    [ $# -eq 0 ] || usage
    new_key "$dir/ca"
    openssl req -x509 -new -key "$dir/ca.key" -days 3650 -subj '/CN=qcnode site authority' \
        -addext 'basicConstraints=critical,CA:TRUE,pathlen:0' \
        -addext 'keyUsage=critical,keyCertSign,cRLSign' -out "$dir/ca.crt"
    chmod 644 "$dir/ca.crt"
    printf '%s: %s\n' "$dir/ca.crt" "$(openssl x509 -noout -enddate -in "$dir/ca.crt")"
    ;;
server)
    [ $# -ge 1 ] || usage
    names=
    for name in "$@"; do
        case $name in
        *[!A-Za-z0-9.:-]* | '') fail "'$name' is no host name and no address" ;;
        *:*) names+="${names:+,}IP:$name" ;;
        *[!0-9.]*) names+="${names:+,}DNS:$name" ;;
        *) names+="${names:+,}IP:$name" ;;
        esac
    done
    sign "$dir/server" "$1" 397 "extendedKeyUsage=serverAuth
subjectAltName=$names"
    ;;
client)
    [ $# -eq 1 ] || usage
    [[ $1 =~ ^[a-z0-9][a-z0-9-]{0,31}$ ]] || fail "'$1' is no user name: 1 to 32 of a-z, 0-9 and -"
    [[ $1 != ca && $1 != server ]] || fail "'$1' names a file of the authority: choose another"
    sign "$dir/$1" "$1" 397 'extendedKeyUsage=clientAuth'
    ;;
*) usage ;;
esac
