#!/bin/sh
# Make a node known to the billing server, by its public key and the token it may hand in batches
# with. What is known already stays as it is, revoked or not, so this may run at every start.
#
#   enrol.sh TENANT NODE KEY.pub TOKEN      with the database in QCNODE_BILLING_URL
set -eu
[ $# = 4 ] || { echo 'enrol.sh TENANT NODE KEY.pub TOKEN' >&2; exit 2; }
tenant=$1 node=$2 key=$3 token=$4

# The billing server makes its books when it starts, and its database may take a while before that.
tries=1
until nodes=$(qcnode billing node list --json); do
    [ "$tries" -lt 30 ] || { echo 'enrol.sh: there are no books to enrol anybody in' >&2; exit 1; }
    tries=$((tries + 1))
    sleep 2
done

case $nodes in
*"\"$(cat "$key")\""*) echo "the key of $tenant/$node is known" ;;
*) qcnode billing node add --by enrol --tenant "$tenant" --node "$node" --key "$key" ;;
esac
case $(qcnode billing token list --json) in
*"\"name\": \"$tenant.$node\""*) echo "the token $tenant.$node is known" ;;
*) qcnode billing token add "$tenant.$node" --by enrol --scope ingest --tenant "$tenant" --node "$node" --from "$token" ;;
esac
