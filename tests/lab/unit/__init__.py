# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The parts of the lab by themselves: strings in, strings out."""
