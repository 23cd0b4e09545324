# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A Windows host to test against where there is none: real WinRM in front of a registry and services.

A request goes down this list, and nothing calls back up:

    hosts.py, __main__.py    several hosts in a process, for tests and from the command line
    server.py                HTTP, a thread a connection; counters and the journal
    tls.py                   the certificates of HTTPS
    auth.py, users.py        who is it (Basic, NTLM, Kerberos, a certificate), and who may be
    kdc.py                   a Kerberos realm
    sealing.py               encrypted bodies
    wsman.py                 SOAP envelopes, dispatch, faults; strings in, strings out
    faults.py, troubles.py   when something goes wrong with a request, and what
    shell.py, cim.py         what requests are about: shells, and WMI with its classes in std_reg_prov.py,
                             win32_service.py and operating_system.py (cim_class.py says what a class is,
                             machine.py which computer it is), enumeration.py and association.py
    service_faults.py        services that do not do what they accepted
    backend.py               the interface to a registry and a service control manager:
    memory.py, smtpsvc.py    in pure Python, with an SMTP service that obeys TarpitTime
    wine.py, windows/       real ones

Where the lab knows better than Windows, it is stricter: a client that the lab accepts should do well
with Windows, not the other way round.
"""
