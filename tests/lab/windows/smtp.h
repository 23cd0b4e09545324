/* Copyright: the mailops.tarpit contributors
 * SPDX-License-Identifier: GPL-3.0-or-later
 */

#ifndef LAB_SMTP_H
#define LAB_SMTP_H

#define WIN32_LEAN_AND_MEAN
#include <winsock2.h>
#include <windows.h>

/* Holds a whole session, until one side ends it or `stopping` is set. The socket stays the caller's to close.
 * Each 5xx reply is held back `tarpit_ms` milliseconds. */
void smtp_talk(SOCKET client, HANDLE stopping, DWORD tarpit_ms);

#endif
