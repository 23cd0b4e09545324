/* Copyright: the mailops.tarpit contributors
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * SMTPSVC of the lab's Wine hosts: a Windows service that a probe from outside takes for IIS' SMTP server.
 *
 * From the registry (HKEY_LOCAL_MACHINE), once, when it starts:
 *
 *   SYSTEM\CurrentControlSet\Services\SMTPSVC\Parameters, TarpitTime (REG_DWORD): seconds by which every
 *   5xx reply is held back. Missing, of another type or 0: none. 2xx, 3xx and 4xx always go out at once.
 *   SOFTWARE\Lab\SMTPSVC, Port (REG_DWORD): where to listen on loopback. Real IIS keeps that elsewhere.
 *
 * This file is the service: its start and stop, its listener, a thread a session. What is said in a session
 * is in smtp.c.
 *
 * The service's thread waits for connections and for the stop event, and so does each session, in a thread
 * of its own. So stopping never waits for a tarpit or a silent client: it closes the listener, and reports
 * Stopped when all sessions have left.
 */

#include "smtp.h"

#include <process.h>

#define SERVICE_NAME L"SMTPSVC"
#define PARAMETERS_KEY L"SYSTEM\\CurrentControlSet\\Services\\SMTPSVC\\Parameters"
#define LAB_KEY L"SOFTWARE\\Lab\\SMTPSVC"

enum {
    SESSIONS_MAX = 200,
    STOP_MS = 3000, /* sessions leave at once; a service must not hang where one does not */
};

static SERVICE_STATUS_HANDLE status_handle;
static HANDLE stopping; /* manual reset: set once, seen by every thread */
static DWORD tarpit_ms;
static volatile LONG sessions;

/* -- the sessions -- */

static unsigned __stdcall session_thread(void *client)
{
    smtp_talk((SOCKET)client, stopping, tarpit_ms);
    closesocket((SOCKET)client);
    InterlockedDecrement(&sessions);
    return 0;
}

static void begin_session(SOCKET client)
{
    static const char too_many[] = "421 4.3.2 Too many sessions\r\n";
    uintptr_t thread = 0;

    if (InterlockedIncrement(&sessions) <= SESSIONS_MAX)
        thread = _beginthreadex(NULL, 0, session_thread, (void *)client, 0, NULL);
    if (thread) {
        CloseHandle((HANDLE)thread);
        return;
    }
    InterlockedDecrement(&sessions);
    send(client, too_many, sizeof too_many - 1, 0);
    closesocket(client);
}

static void await_end_of_sessions(void)
{
    for (DWORD waited = 0; sessions > 0 && waited < STOP_MS; waited++)
        Sleep(1);
}

/* -- the service -- */

static DWORD read_dword(const WCHAR *key, const WCHAR *name)
{
    DWORD number, size = sizeof number;
    LONG code = RegGetValueW(HKEY_LOCAL_MACHINE, key, name, RRF_RT_REG_DWORD | RRF_SUBKEY_WOW6464KEY, NULL,
                             &number, &size);

    return code == ERROR_SUCCESS ? number : 0;
}

static void report(DWORD state, DWORD error)
{
    SERVICE_STATUS status = {
        .dwServiceType = SERVICE_WIN32_OWN_PROCESS,
        .dwCurrentState = state,
        .dwControlsAccepted = state == SERVICE_RUNNING ? SERVICE_ACCEPT_STOP | SERVICE_ACCEPT_SHUTDOWN : 0,
        .dwWin32ExitCode = error,
        .dwWaitHint = state == SERVICE_START_PENDING || state == SERVICE_STOP_PENDING ? 2 * STOP_MS : 0,
    };

    SetServiceStatus(status_handle, &status);
}

/* Listens, or returns INVALID_SOCKET and leaves the reason in WSAGetLastError(). */
static SOCKET listen_on_loopback(u_short port)
{
    struct sockaddr_in address = {
        .sin_family = AF_INET,
        .sin_port = htons(port),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };
    SOCKET listener = socket(AF_INET, SOCK_STREAM, IPPROTO_TCP);
    BOOL reuse = TRUE;

    /* Port 0, or none in the registry, would be any port: nobody would find it. */
    if (!port)
        WSASetLastError(WSAEADDRNOTAVAIL);
    if (!port || listener == INVALID_SOCKET)
        return INVALID_SOCKET;
    /* Wine hands this to the system below, where it lets a restart bind while old connections fade away. */
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, (const char *)&reuse, sizeof reuse);
    if (bind(listener, (const struct sockaddr *)&address, sizeof address) != 0 ||
        listen(listener, SOMAXCONN) != 0) {
        int reason = WSAGetLastError();

        closesocket(listener);
        WSASetLastError(reason);
        return INVALID_SOCKET;
    }
    return listener;
}

static void accept_until_stopped(SOCKET listener)
{
    HANDLE connection = WSACreateEvent(), waits[] = {stopping, connection};
    SOCKET client;

    WSAEventSelect(listener, connection, FD_ACCEPT);
    while (WaitForMultipleObjects(ARRAYSIZE(waits), waits, FALSE, INFINITE) != WAIT_OBJECT_0) {
        WSAResetEvent(connection);
        while ((client = accept(listener, NULL, NULL)) != INVALID_SOCKET)
            begin_session(client);
    }
    WSACloseEvent(connection);
}

static DWORD WINAPI on_control(DWORD code, DWORD type, void *event, void *context)
{
    (void)type, (void)event, (void)context;
    switch (code) {
    case SERVICE_CONTROL_STOP:
    case SERVICE_CONTROL_SHUTDOWN:
        report(SERVICE_STOP_PENDING, NO_ERROR);
        SetEvent(stopping);
        return NO_ERROR;
    case SERVICE_CONTROL_INTERROGATE:
        return NO_ERROR;
    default:
        return ERROR_CALL_NOT_IMPLEMENTED;
    }
}

static void WINAPI service_main(DWORD count, WCHAR **arguments)
{
    DWORD seconds = read_dword(PARAMETERS_KEY, L"TarpitTime");
    SOCKET listener;

    (void)count, (void)arguments;
    /* More than 49 days do not fit into a count of milliseconds. */
    tarpit_ms = seconds < INFINITE / 1000 ? seconds * 1000 : INFINITE;
    status_handle = RegisterServiceCtrlHandlerExW(SERVICE_NAME, on_control, NULL);
    report(SERVICE_START_PENDING, NO_ERROR);
    listener = listen_on_loopback((u_short)read_dword(LAB_KEY, L"Port"));
    if (listener == INVALID_SOCKET) {
        report(SERVICE_STOPPED, WSAGetLastError());
        return;
    }
    report(SERVICE_RUNNING, NO_ERROR);
    accept_until_stopped(listener);
    closesocket(listener);
    await_end_of_sessions();
    report(SERVICE_STOPPED, NO_ERROR);
}

int main(void)
{
    static WCHAR name[] = SERVICE_NAME;
    const SERVICE_TABLE_ENTRYW services[] = {{name, service_main}, {NULL, NULL}};
    WSADATA winsock;

    stopping = CreateEventW(NULL, TRUE, FALSE, NULL);
    if (!stopping || WSAStartup(MAKEWORD(2, 2), &winsock) != 0)
        return 1;
    /* Fails at once where no service control manager started this program. */
    return StartServiceCtrlDispatcherW(services) ? 0 : 1;
}
