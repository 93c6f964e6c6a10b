#!/usr/bin/env bash
# Wait for the cloud's notice that it takes this spot machine back, then drain the Ray node on it:
# the node gets no new unit, and what it lost does not count as a failure.
#
#   spot-notice.sh aws|gcp|azure
set -euo pipefail

cloud=${1:?aws, gcp or azure}
metadata=${METADATA_URL:-http://169.254.169.254}
every_s=${POLL_S:-5}

ask() { curl --silent --fail --max-time 3 "$@"; }

noticed_aws() {
  local token
  token=$(ask -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' "$metadata/latest/api/token") &&
    ask -H "X-aws-ec2-metadata-token: $token" "$metadata/latest/meta-data/spot/instance-action"
}

noticed_gcp() {
  ask -H 'Metadata-Flavor: Google' "$metadata/computeMetadata/v1/instance/preempted" | grep -x TRUE
}

noticed_azure() {
  ask -H 'Metadata: true' "$metadata/metadata/scheduledevents?api-version=2020-07-01" |
    grep '"Preempt"'
}

case $cloud in
  aws) left_s=120 ;;
  gcp | azure) left_s=30 ;;
  *) echo "$cloud: no such cloud; aws, gcp or azure" >&2; exit 2 ;;
esac

until "noticed_$cloud" > /dev/null; do sleep "$every_s"; done
exec ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION \
  --reason-message "spot notice of $cloud" --deadline-remaining-seconds "$left_s"
