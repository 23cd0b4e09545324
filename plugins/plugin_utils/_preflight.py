# Copyright: the mailops.tarpit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What would go wrong if mail came to a proxy now? Sentences, each with the mend; an empty list lets it come.

Everything was asked and read before (roles/greylist_proxy/tasks/preflight.yml); here it is only judged.
"""

from __future__ import annotations

import datetime
import typing as t
from dataclasses import dataclass
from urllib.parse import urlsplit

if t.TYPE_CHECKING:
    from cryptography import x509

Variables = t.Mapping[str, t.Any]

# What proxies of the same domains must have in common: variables of the role, and keys of greylist_proxy_settings.
SHARED_VARIABLES = (
    "greylist_proxy_store_url",
    "greylist_proxy_mode",
    "greylist_proxy_domains",
    "greylist_proxy_allowed_clients",
    "greylist_proxy_allowed_recipients",
    "greylist_proxy_trap_recipients",
    "greylist_proxy_recipients",
)
SHARED_SETTINGS = (("greylist", None), ("allow", None), ("trap", None), ("store", "url"), ("store", "prefix"))
PORT_FOR_PROXIES = (
    "give the proxies a port that takes the header (Postfix: smtpd_upstream_proxy_protocol = haproxy), or leave"
    " send_client_address out of greylist_proxy_settings.backend"
)


@dataclass(frozen=True)
class Answer:
    """What a mail server said to RCPT; code 0: it was not heard, and the text says why."""

    server: str
    recipient: str
    code: int
    text: str
    extensions: tuple[str, ...]

    @classmethod
    def read(cls, result: Variables) -> Answer:
        """Take one result of smtp_probe in a loop over [server, recipient]."""
        server, recipient = result["item"]
        return cls(
            server=str(server),
            recipient=str(recipient),
            code=int(result.get("code") or 0),
            text=str(result.get("message") or result.get("msg") or "it gave no reason"),
            extensions=tuple(map(str, result.get("extensions") or ())),
        )

    @property
    def refused(self) -> bool:
        """Will not take it, now or later.

        Postfix says 454 4.7.1 for a destination that it does not relay to, unless smtpd_relay_restrictions are changed
        (defer_unauth_destination is in their default). A greylister says 450 or 451.
        """
        return self.code // 100 == 5 or (self.code == 454 and self.text.startswith("4.7.1"))

    @property
    def said(self) -> str:
        """The reply, for a sentence."""
        return f"{self.code} {self.text}"


def relaying(answer: Answer, forwarding: str) -> t.Iterator[str]:
    """Judge the answer to a recipient in a foreign domain, and who the server takes the proxy for."""
    if not answer.code:
        if "PROXY header" in answer.text:
            yield f"{answer.server} does not take the PROXY header that {forwarding} sends: {PORT_FOR_PROXIES}."
        else:
            yield (
                f"{answer.server} cannot be asked from here: {answer.text.rstrip('.')}. A proxy must reach the mail"
                " server behind it, and a server that waits for a PROXY header must be sent one (send_client_address)."
            )
        return
    if forwarding == "xclient" and not any(each.upper().startswith("XCLIENT") for each in answer.extensions):
        yield (
            f"{answer.server} offers no XCLIENT to this proxy, and would take it for the client of all mail: name the"
            " proxy's address in smtpd_authorized_xclient_hosts."
        )
    if answer.code // 100 == 2:
        yield (
            f"{answer.server} accepted the foreign recipient {answer.recipient}: it relays for this proxy. Opened to"
            " the world, that makes an open relay, with nothing but a list of domains before it. Take the proxy's"
            " address out of what may relay there (Exchange: the receive connector's permissions or RemoteIPRanges;"
            " Windows: Access, Relay; Postfix: mynetworks)."
        )
    elif not answer.refused:
        yield (
            f"{answer.server} answered {answer.said} for the foreign recipient {answer.recipient}, which is neither yes"
            " nor no: whether it relays for this proxy is not known. Run it again later."
        )


def domains(answer: Answer) -> t.Iterator[str]:
    """Judge the answer to a recipient in a domain of ours."""
    domain = answer.recipient.rpartition("@")[2]
    if answer.refused:
        yield (
            f"{answer.server} refuses {answer.recipient} ({answer.said}): {domain} is not one of its domains, or has no"
            " postmaster, which RFC 5321 section 4.5.1 demands. Mend that there, or take it out of"
            " greylist_proxy_domains."
        )
    elif answer.code and answer.code // 100 != 2:
        yield (
            f"{answer.server} puts {answer.recipient} off ({answer.said}), so nobody knows whether it takes that"
            " domain. If it greylists, turn that off for the proxies; else run it again later."
        )


def certificate(pem: str, names: t.Iterable[str], days: int, now: datetime.datetime) -> t.Iterator[str]:
    """Judge a certificate, the first one of a PEM file, for these names and so many days from `now` on."""
    # ansible-core brings it along for its vault; the check of imports (ansible-test) has none.
    from cryptography import x509

    try:
        found = x509.load_pem_x509_certificate(pem.encode())
    except ValueError as error:
        yield f"The certificate cannot be read ({error}): greylist_proxy_tls_certificate must be a PEM file."
        return
    begin, end = _validity(found)
    if now < begin:
        yield f"The certificate is valid from {begin:%Y-%m-%d %H:%M} UTC on, which is in the future: look at the clock."
    if now > end:
        yield f"The certificate has ended on {end:%Y-%m-%d %H:%M} UTC: renew it."
    elif now + datetime.timedelta(days=days) > end:
        yield (
            f"The certificate ends on {end:%Y-%m-%d %H:%M} UTC, in less than {days} days: renew it, and see why the"
            " ACME client did not (greylist_proxy_preflight_certificate_days is how early this is said)."
        )
    there = _dns_names(found)
    for name in names:
        if not any(_matches(name.lower().rstrip("."), each.lower()) for each in there):
            yield (
                f"The certificate is for {', '.join(there) or 'no name'}, and not for {name}, by which senders come:"
                " get one with that name, or set greylist_proxy_preflight_mx_names to the names in the MX records."
            )


def _validity(found: x509.Certificate) -> tuple[datetime.datetime, datetime.datetime]:
    # cryptography has the names with _utc since version 42, and warns of the others since then.
    if hasattr(found, "not_valid_after_utc"):
        return found.not_valid_before_utc, found.not_valid_after_utc
    utc = datetime.UTC
    return found.not_valid_before.replace(tzinfo=utc), found.not_valid_after.replace(tzinfo=utc)


def _dns_names(found: x509.Certificate) -> list[str]:
    from cryptography import x509

    try:
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return names.value.get_values_for_type(x509.DNSName)


def _matches(name: str, pattern: str) -> bool:
    """RFC 6125 section 6.4.3: a wildcard stands for the whole first label."""
    if pattern.startswith("*."):
        return name.partition(".")[2] == pattern[2:]
    return name == pattern


def sharing(host: str, proxies: t.Mapping[str, Variables], store_url: str) -> t.Iterator[str]:
    """Judge whether the proxies for this one's domains share a store and a policy; `proxies` has this one too."""
    mine = proxies[host]
    ours = _domains(mine)
    others = [
        name
        for name, theirs in proxies.items()
        if name != host
        and theirs.get("greylist_proxy_state") != "absent"
        # Where nobody set it in the inventory, the play did for all of them.
        and (not ours or not _domains(theirs) or ours & _domains(theirs))
    ]
    if not others:
        return
    names = ", ".join(others)
    if (own := own_store(store_url)) is not None:
        yield (
            f"{names} and {host} take mail for the same domains, and the store of {host} is {own} of its own: a retry"
            " at another one would be a first sight again. Set greylist_proxy_store_url to a Valkey or Redis server,"
            " the same for all of them (docs/greylisting.md)."
        )
    for other in others:
        different = [label for label, value in _shared(mine) if value != dict(_shared(proxies[other]))[label]]
        if different:
            yield (
                f"{other} and {host} take mail for the same domains, and differ in {', '.join(different)}: what one of"
                " them lets pass, the other would not. Set it for their group and not for a host."
            )


def own_store(url: str) -> str | None:
    """Return what a host that has this store has for itself, or None where others may share it."""
    parts = urlsplit(url)
    if parts.scheme.startswith("sqlite"):
        return "an SQLite file"
    hosts = [each.rpartition("@")[2] for each in parts.netloc.split(",")]
    if all(each.startswith(("localhost", "127.", "[::1]")) for each in hosts):
        return "a server"
    return None


def _domains(variables: Variables) -> set[str]:
    return {str(each).lower() for each in variables.get("greylist_proxy_domains") or ()}


def _shared(variables: Variables) -> t.Iterator[tuple[str, t.Any]]:
    for name in SHARED_VARIABLES:
        value = variables.get(name)
        # The order of a list means nothing in any of them.
        yield name, sorted(map(str, value)) if isinstance(value, (list, tuple)) else value
    settings = variables.get("greylist_proxy_settings") or {}
    for section, key in SHARED_SETTINGS:
        there = settings.get(section) or {}
        yield f"greylist_proxy_settings.{section}{f'.{key}' if key else ''}", there.get(key) if key else there
