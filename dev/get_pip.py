# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ansible-test runs as pip's installer: the pip that comes with Python, then the version asked for.

ansible-test would download get-pip.py from the network otherwise.
"""

import ensurepip
import runpy
import sys

ensurepip.bootstrap()
sys.argv = ["pip", "install", *(word for word in sys.argv[1:] if word not in ("--no-setuptools", "--no-wheel"))]
runpy.run_module("pip", run_name="__main__")
