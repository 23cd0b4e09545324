# Copyright: the mailops.tarpit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One sentence for an error of the HTTP and authentication libraries, found by the names of their classes.

pywinrm, pypsrp, requests, pyspnego and the Kerberos libraries are not all installed everywhere, so that their
classes cannot be named themselves.
"""

from __future__ import annotations

import typing as t

Explanations = t.Sequence[tuple[tuple[str, ...], str]]


def explain(error: Exception, explanations: Explanations) -> str:
    """The sentence of the first entry that names the error's class or one that it derives from.

    `{cause}` in a sentence stands for the innermost reason.
    """
    names = {kind.__name__ for kind in type(error).__mro__}
    for kinds, sentence in explanations:
        if names.intersection(kinds):
            return sentence.format(cause=cause(error))
    return str(error) or type(error).__name__


def cause(error: BaseException) -> str:
    """The innermost reason of a chain of exceptions, without the objects' addresses that urllib3 prints."""
    while True:
        inner = getattr(error, "reason", None) or (error.args[0] if error.args else None)
        if not isinstance(inner, BaseException):
            break
        error = inner
    text = str(getattr(error, "strerror", None) or error)
    return text.rpartition("object at ")[2].partition(": ")[2] or text
