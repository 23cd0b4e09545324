# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is counted, and how it is told.

    table        what there is: names, labels, meanings, and which cell of a row is whose. Pure
    counts       the rows: memory that all workers share, one row for each
    exposition   the rows summed up, in the words of Prometheus

Counting is an addition to a cell of memory, at the place where something happens: `cells[CONNECTIONS.cell] += 1`.
No lock and no label is looked up, as a whole session has 150 microseconds. Adding up is the business of who asks.

Labels are fixed words. No address, name or text that came from outside is ever one: it would let anybody make
series without end, and tell whoever reads them who mails whom.
"""
