# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What clients of WinRM may rely on, shown over the wire on both backends."""
