# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""SMTP on both sides: the clients in front, the mail server behind, one transaction from one to the other."""
