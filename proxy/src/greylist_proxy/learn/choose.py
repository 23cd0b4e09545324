# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is learned of a message that one of our users sent: the recipient's domain, or only its address.

The domain, so that a colleague may answer; but the address alone where strangers share the domain: at freemail
providers, and directly below a public suffix (`github.io`, by the list that `names.py` uses).

Left out are

- senders that are none of ours, and the null sender (bounces, automatic replies);
- senders that are programs: `mailer-daemon@`, `no-reply@` and the like answer to whatever comes in, so an attacker
  could make them write to him;
- recipients of ours, and addresses of ours that are forwarded elsewhere;
- recipients that are programs' too: who writes to `unsubscribe@` has said what he thinks of the domain's mail.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator

from greylist_proxy.lists.entries import EntryError, canonical
from greylist_proxy.names import public_domain, registrable_domain
from greylist_proxy.smtp.address import AddressError, parse_recipient, parse_sender
from greylist_proxy.store import Action, Entry, Kind, Source

MAX_LEARNED = 200_000  # domains and addresses in one run; a few hundred bytes each

# Providers where anybody has an address. Not complete: the list errs towards the well known.
FREEMAIL = frozenset(
    """
    gmail.com googlemail.com outlook.com outlook.de outlook.fr hotmail.com hotmail.co.uk hotmail.de hotmail.fr
    hotmail.it live.com live.co.uk live.de live.fr live.nl msn.com yahoo.com yahoo.co.uk yahoo.co.jp yahoo.co.in
    yahoo.com.br yahoo.de yahoo.es yahoo.fr yahoo.it ymail.com rocketmail.com icloud.com me.com mac.com aol.com
    proton.me protonmail.com pm.me tuta.com tutanota.com fastmail.com zoho.com mail.com email.com hushmail.com
    gmx.de gmx.net gmx.at gmx.ch gmx.com web.de freenet.de t-online.de posteo.de mailbox.org arcor.de online.de
    bluewin.ch orange.fr wanadoo.fr free.fr laposte.net sfr.fr libero.it virgilio.it tiscali.it alice.it
    telenet.be skynet.be ziggo.nl kpnmail.nl telia.com wp.pl o2.pl onet.pl interia.pl seznam.cz centrum.cz
    mail.ru bk.ru inbox.ru list.ru yandex.ru yandex.com rambler.ru ukr.net abv.bg
    qq.com foxmail.com 163.com 126.com yeah.net sina.com sohu.com naver.com hanmail.net daum.net rediffmail.com
    comcast.net verizon.net att.net sbcglobal.net cox.net charter.net bellsouth.net btinternet.com
    ntlworld.com virginmedia.com talktalk.net sky.com bigpond.com optusnet.com.au rogers.com shaw.ca
    uol.com.br bol.com.br terra.com.br
    """.split()  # noqa: SIM905 - one word a domain reads better than one line
)

PROGRAMS = frozenset(
    """
    mailer-daemon postmaster noreply no-reply donotreply do-not-reply autoreply auto-reply bounce bounces
    double-bounce daemon root nobody vacation
    """.split()  # noqa: SIM905
)
UNSUBSCRIBE = ("unsubscribe", "optout", "opt-out")


class Chooser:
    """Gathers what is learned: `sent` is told of each message and recipient, `entries` gives the result.

    `own` are our mail domains, `freemail` more domains that strangers share; a domain or address must have been
    written to in `minimum` messages. `ignored` counts recipients that nothing is learned from, by reason.
    """

    def __init__(self, own: Collection[str], minimum: int = 1, freemail: Collection[str] = ()) -> None:
        self._own = frozenset(domain.lower() for domain in own)
        self._freemail = FREEMAIL | {domain.lower() for domain in freemail}
        self._minimum = minimum
        self._found: dict[str, set[int]] = {}
        self.is_full = False  # there was more than MAX_LEARNED
        self.recipients = 0
        self.ignored: Counter[str] = Counter()

    def sent(self, sender: str, recipient: str, original: str, message: str) -> None:
        """Take one recipient of one message in. Any text is taken, all of it is a stranger's."""
        self.recipients += 1
        learned, reason = self._judge(sender, recipient, original)
        if not learned:
            self.ignored[reason] += 1
            return
        messages = self._found.get(learned)
        if messages is None:
            if len(self._found) >= MAX_LEARNED:
                self.is_full = True
                self.ignored["one too many"] += 1
                return
            messages = self._found[learned] = set()
        if len(messages) < self._minimum:
            # One message passes several servers, each of which logs it. A hash is enough to tell messages apart.
            messages.add(hash(message))

    def entries(self, created: float, expires: float) -> Iterator[Entry]:
        """Give an entry for whatever was written to often enough; the times are seconds since 1970."""
        for learned, messages in self._found.items():
            if len(messages) >= self._minimum:
                note = "our users write there"
                yield Entry(Kind.SENDER, learned, Action.ALLOW, Source.LEARNED, created, expires, note)

    @property
    def too_few(self) -> int:
        """How many domains and addresses were not written to often enough."""
        return sum(len(messages) < self._minimum for messages in self._found.values())

    def _judge(self, sender: str, recipient: str, original: str) -> tuple[str, str]:
        """Return what is learned, or "" and why nothing is."""
        try:
            from_path = parse_sender(sender)
            to_path = parse_recipient(recipient)
        except AddressError:
            return "", "not an address"
        if not from_path.address:
            return "", "from the null sender"
        if from_path.domain not in self._own:
            return "", "from a domain that is not ours"
        if _mailbox(from_path.local) in PROGRAMS:
            return "", "from a program"
        if to_path.domain in self._own or original.rpartition("@")[2].lower() in self._own:
            return "", "to ourselves"
        if _mailbox(to_path.local) in PROGRAMS or any(word in to_path.local.lower() for word in UNSUBSCRIBE):
            return "", "to a program"
        domain = to_path.domain
        if domain in self._found:
            return domain, ""
        if not public_domain(domain):
            return "", "not a domain of the public DNS"
        try:
            if domain not in self._freemail and registrable_domain(domain):
                return canonical(Kind.SENDER, domain), ""
            return canonical(Kind.SENDER, f"{to_path.local}@{domain}"), ""
        except EntryError:
            return "", "not an address"


def _mailbox(local: str) -> str:
    return local.partition("+")[0].lower()
