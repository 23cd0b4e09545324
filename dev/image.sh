#!/usr/bin/env bash
# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# dev/image.sh SUITE [PACKAGE…]: makes a container image of a bare Debian with systemd and Python, and these packages,
# from Debian's own packages, unless the machine has it. Prints the image's name. The name holds a digest of this
# recipe, so that checkouts with different recipes do not share an image.

set -euo pipefail
suite=$1
packages=$(IFS=,; echo "systemd,systemd-sysv,dbus,python3,ca-certificates,iproute2${2+,${*:2}}")
image=localhost/mailops-tarpit-debian:$suite-$(printf '%s' "$suite $packages" | sha256sum | cut -c1-12)
here=$(cd "$(dirname "$0")" && pwd)
export CONTAINERS_CONF=$here/podman/containers.conf

(
    flock 9 # two checkouts that start at once must not make it twice
    if ! podman image exists "$image"; then
        echo "setup: making the container image $image (half a minute, once)" >&2
        tar=$(mktemp --suffix=.tar)
        trap 'rm -f "$tar"' EXIT
        mmdebstrap --quiet --variant=minbase --include="$packages" "$suite" "$tar" >&2
        podman import --quiet "$tar" "$image" >/dev/null
    fi
) 9>"${TMPDIR:-/tmp}/mailops-tarpit-image.$(id -u).lock"
printf '%s\n' "$image"
