# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""`python -m greylist_proxy`: the same as the command `greylist-proxy`."""

import sys

from greylist_proxy.cli import main

sys.exit(main())
