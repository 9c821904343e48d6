#!/bin/sh
# Start the broker with one user for each secret `mqtt_NAME`: its name is NAME.
set -eu
umask 077
: >/tmp/passwords
for secret in /run/secrets/mqtt_*; do
    [ -s "$secret" ] || continue
    printf '%s:%s\n' "${secret#/run/secrets/mqtt_}" "$(cat "$secret")" >>/tmp/passwords
done
[ -s /tmp/passwords ] || { echo 'no secret mqtt_NAME was handed over, so nobody could connect' >&2; exit 2; }
mosquitto_passwd -U /tmp/passwords
exec mosquitto -c /etc/mosquitto/qcnode/mosquitto.conf
