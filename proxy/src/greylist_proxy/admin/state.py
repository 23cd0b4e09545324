# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the admin side's handlers get to know: the parts of the running program."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from greylist_proxy.admin.access import Access
from greylist_proxy.assembly import Judgement
from greylist_proxy.config import Config
from greylist_proxy.log import Log
from greylist_proxy.news import News
from greylist_proxy.pulse import Pulse
from greylist_proxy.smtp.shared import Services
from greylist_proxy.smtp.timers import Watch
from greylist_proxy.store import Store


@dataclass
class State:
    """The parts of this process; where several serve, each has its own. A handler runs in the event loop of mail."""

    config: Config  # as this process began; what a reload changes is found in the parts below
    services: Services  # backends, connections, tarpit, tasks
    judgement: Judgement  # the gate with its rules (and mode), exemptions, resolver
    store: Store
    watch: Watch  # the sessions of this process
    log: Log
    access: Access
    news: News  # of entries, to all workers
    pulse: Pulse  # how this process is, and what all have counted
    workers: int = 1
    number: int = 0  # of this process among the workers
    started: float = field(default_factory=time.time)  # of this process, seconds since 1970
