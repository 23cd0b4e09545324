/* Copyright: the mailops.tarpit contributors
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * One SMTP session of the lab's SMTPSVC: what was said so far decides what the next command gets.
 *
 * It says word for word what the memory backend's SMTP side says (lab/smtpsvc.py), so that no test sees a
 * difference. It relays nothing and keeps nothing; mail for lab.test is accepted and dropped. Every reply
 * leaves through `reply`, which knows the tarpit. The socket does not block: whatever a session waits for, it
 * waits for the service's stop too.
 */

#include "smtp.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define LOCAL_DOMAIN "@lab.test"
#define BANNER "220 lab Microsoft ESMTP MAIL Service ready"

enum {
    /* RFC 5321 4.5.3.1.4 asks for 512 octets; extensions add to it. Longer lines end the session. */
    LINE_MAX_BYTES = 4096,
    MESSAGE_MAX_BYTES = 2 * 1024 * 1024,
    IDLE_MS = 300 * 1000,
};

typedef struct {
    SOCKET socket;
    HANDLE readable, stopping;
    DWORD tarpit_ms;
    char buffer[LINE_MAX_BYTES]; /* received and not yet read as lines */
    int filled;
    BOOL greeted, has_sender, in_message, closed;
    int recipients;
    DWORD message_bytes;
} Session;

static void forget(Session *s)
{
    s->has_sender = s->in_message = FALSE;
    s->recipients = 0;
    s->message_bytes = 0;
}

static void reply(Session *s, const char *format, ...)
{
    char text[LINE_MAX_BYTES + 256];
    va_list arguments;
    int length;

    va_start(arguments, format);
    length = vsnprintf(text, sizeof text - 2, format, arguments);
    va_end(arguments);
    memcpy(text + length, "\r\n", 2);
    /* A reply that is still held back when the service stops is never sent. */
    if (text[0] == '5' && s->tarpit_ms && WaitForSingleObject(s->stopping, s->tarpit_ms) == WAIT_OBJECT_0)
        s->closed = TRUE;
    /* Nor is one for which there is no room, because the client reads none. */
    else if (send(s->socket, text, length + 2, 0) != length + 2)
        s->closed = TRUE;
}

/* The address in "FROM:<address> parameters", cut out of `argument`; NULL where it has another form. */
static char *path(char *argument, const char *keyword)
{
    size_t length = strlen(keyword);
    char *start, *end;

    if (_strnicmp(argument, keyword, length) != 0)
        return NULL;
    start = argument + length;
    start += strspn(start, " \t");
    if (*start++ != '<')
        return NULL;
    end = start + strcspn(start, "<> \t");
    if (*end != '>' || !strchr(" \t", end[1]))
        return NULL;
    *end = '\0';
    return start;
}

static void hello(Session *s, const char *argument, BOOL extended)
{
    if (argument[strspn(argument, " \t")] == '\0') {
        reply(s, "501 5.5.4 Invalid domain name");
        return;
    }
    forget(s);
    s->greeted = TRUE;
    if (extended)
        reply(s, "250-lab Hello\r\n250-SIZE %d\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-ENHANCEDSTATUSCODES\r\n"
                 "250 OK", MESSAGE_MAX_BYTES);
    else
        reply(s, "250 lab Hello");
}

static void mail(Session *s, char *argument)
{
    char *address;

    if (!s->greeted)
        reply(s, "503 5.5.2 Send hello first");
    else if (s->has_sender)
        reply(s, "503 5.5.2 Sender already specified");
    else if (!(address = path(argument, "FROM:")))
        reply(s, "501 5.5.4 Invalid Address");
    else {
        s->has_sender = TRUE;
        reply(s, "250 2.1.0 %s....Sender OK", address);
    }
}

static void rcpt(Session *s, char *argument)
{
    char *address, *domain;

    if (!s->has_sender) {
        reply(s, "503 5.5.2 Need mail command.");
        return;
    }
    address = path(argument, "TO:");
    if (!address || !*address) {
        reply(s, "501 5.5.4 Invalid Address");
        return;
    }
    domain = strrchr(address, '@');
    if (!domain || _stricmp(domain, LOCAL_DOMAIN) != 0) {
        reply(s, "550 5.7.1 Unable to relay for %s", address);
        return;
    }
    s->recipients++;
    reply(s, "250 2.1.5 %s", address);
}

static void data(Session *s)
{
    if (!s->recipients) {
        reply(s, "503 5.5.2 Need Rcpt command.");
        return;
    }
    s->in_message = TRUE;
    reply(s, "354 Start mail input; end with <CRLF>.<CRLF>");
}

static void message_line(Session *s, const char *line)
{
    static volatile LONG accepted;
    BOOL too_large = s->message_bytes > MESSAGE_MAX_BYTES;

    if (strcmp(line, ".") != 0) {
        if (!too_large)
            s->message_bytes += (DWORD)strlen(line) + 2;
        return;
    }
    forget(s);
    if (too_large)
        reply(s, "552 5.3.4 Message size exceeds fixed maximum message size");
    else
        reply(s, "250 2.6.0 <%lu.%ld@lab> Queued mail for delivery", GetCurrentProcessId(),
              InterlockedIncrement(&accepted));
}

static void command(Session *s, char *line)
{
    char *argument = line + strcspn(line, " ");

    if (*argument)
        *argument++ = '\0';
    if (!_stricmp(line, "EHLO"))
        hello(s, argument, TRUE);
    else if (!_stricmp(line, "HELO"))
        hello(s, argument, FALSE);
    else if (!_stricmp(line, "MAIL"))
        mail(s, argument);
    else if (!_stricmp(line, "RCPT"))
        rcpt(s, argument);
    else if (!_stricmp(line, "DATA"))
        data(s);
    else if (!_stricmp(line, "RSET")) {
        forget(s);
        reply(s, "250 2.0.0 Resetting");
    } else if (!_stricmp(line, "NOOP"))
        reply(s, "250 2.0.0 OK");
    else if (!_stricmp(line, "VRFY"))
        reply(s, "252 2.1.5 Cannot VRFY user, but will take message for <%s>", argument);
    else if (!_stricmp(line, "QUIT")) {
        reply(s, "221 2.0.0 lab Service closing transmission channel");
        s->closed = TRUE;
    } else
        reply(s, "500 5.3.3 Unrecognized command");
}

/* Fills the buffer further; FALSE where the session is over. */
static BOOL receive(Session *s)
{
    const HANDLE waits[] = {s->stopping, s->readable};
    int received;

    if (s->filled == LINE_MAX_BYTES)
        return FALSE; /* it sends no lines */
    while ((received = recv(s->socket, s->buffer + s->filled, LINE_MAX_BYTES - s->filled, 0)) < 0) {
        if (WSAGetLastError() != WSAEWOULDBLOCK)
            return FALSE;
        if (WaitForMultipleObjects(ARRAYSIZE(waits), waits, FALSE, IDLE_MS) != WAIT_OBJECT_0 + 1)
            return FALSE;
        WSAResetEvent(s->readable);
    }
    s->filled += received;
    return received > 0;
}

/* Takes one line out of the buffer, without its end; FALSE where the session is over. */
static BOOL read_line(Session *s, char *line)
{
    char *end;
    int length;

    while (!(end = memchr(s->buffer, '\n', s->filled)))
        if (!receive(s))
            return FALSE;
    length = (int)(end + 1 - s->buffer);
    memcpy(line, s->buffer, length);
    line[length] = '\0';
    line[strcspn(line, "\r\n")] = '\0';
    s->filled -= length;
    memmove(s->buffer, end + 1, s->filled);
    return TRUE;
}

void smtp_talk(SOCKET client, HANDLE stopping, DWORD tarpit_ms)
{
    Session s = {.socket = client, .stopping = stopping, .tarpit_ms = tarpit_ms};
    char line[LINE_MAX_BYTES + 1];

    s.readable = WSACreateEvent();
    WSAEventSelect(client, s.readable, FD_READ | FD_CLOSE); /* and with it, the socket does not block */
    reply(&s, BANNER);
    while (!s.closed && read_line(&s, line)) {
        if (s.in_message)
            message_line(&s, line);
        else
            command(&s, line);
    }
    WSACloseEvent(s.readable);
}
