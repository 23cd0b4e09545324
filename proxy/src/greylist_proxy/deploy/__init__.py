# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes a deployment of greylist-proxy the live one, without a connection refused or a message lost.

    python -m greylist_proxy.deploy apply            what the role has laid down as wanted
    python -m greylist_proxy.deploy renew            the live one again, where a credential (a certificate) has changed
    python -m greylist_proxy.deploy rollback [NAME]  a release that ran before, configured as it was then
    python -m greylist_proxy.deploy mode MODE        enforce, observe or off, at once

`--check` before the command only says what would be done. One line of JSON comes out: `changed`, `step`, `release`, or
`failed` with a sentence. The role `greylist_proxy` calls it as root, on the host, so that a controller that is lost
does not stop it half-way.

The hand-over: the sockets belong to systemd and stay open. A second service, `greylist-proxy-next`, starts with the
wanted release and configuration on the same sockets. Only when it says that it is ready does anything of the live
deployment change; then the service itself restarts, which takes until its last transaction is through, and after it
`next` ends in the same way. A `next` that is not ready in time is ended: what ran, runs.

    plan.py      what has to be done: pure
    host.py      files, systemd, the journal
    deployer.py  the steps, and what puts them back
"""
