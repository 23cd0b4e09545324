# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the wine backend is made of.

`programs` finds Wine and the compiler, `prefix` makes Wine prefixes and builds the Windows programs whose
C sources are in this folder, `helper` talks to one of them:

- helper.exe (helper.c, calls.c) makes the Win32 calls of one lab host;
- smtpsvc.exe (smtpsvc.c, smtp.c) is the host's SMTPSVC;
- idle.exe (idle.c) is every service that depends on it.
"""
