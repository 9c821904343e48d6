#!/bin/sh
# Make the cluster and the database `billing` once, then run the server.
set -eu
data=/var/lib/postgresql/data
if [ ! -d "$data" ]; then
    # Made beside its place and moved there whole, so that a kill halfway leaves no half a cluster.
    rm -rf "$data.new"
    initdb --pgdata="$data.new" --username=qcnode --pwfile=/run/secrets/postgres_password \
        --auth=scram-sha-256 --encoding=UTF8 --locale=C.UTF-8 --data-checksums
    echo 'host all all all scram-sha-256' >>"$data.new/pg_hba.conf"
    echo 'CREATE DATABASE billing' | postgres --single -D "$data.new" postgres
    sync
    mv "$data.new" "$data"
fi
exec postgres -D "$data" -c listen_addresses='*' -c unix_socket_directories=/tmp \
    -c password_encryption=scram-sha-256 -c log_connections=off -c shared_buffers=64MB
