/* Copyright: the mailops.tarpit contributors
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * A Windows service that runs and does nothing: what depends on SMTPSVC on the lab's Wine hosts. It takes
 * whatever name it was installed under, and stops at once.
 */

#define WIN32_LEAN_AND_MEAN
#include <windows.h>

static SERVICE_STATUS_HANDLE status_handle;
static HANDLE stopping;

static void report(DWORD state)
{
    SERVICE_STATUS status = {
        .dwServiceType = SERVICE_WIN32_OWN_PROCESS,
        .dwCurrentState = state,
        .dwControlsAccepted = state == SERVICE_RUNNING ? SERVICE_ACCEPT_STOP | SERVICE_ACCEPT_SHUTDOWN : 0,
    };

    SetServiceStatus(status_handle, &status);
}

static DWORD WINAPI on_control(DWORD code, DWORD type, void *event, void *context)
{
    (void)type, (void)event, (void)context;
    switch (code) {
    case SERVICE_CONTROL_STOP:
    case SERVICE_CONTROL_SHUTDOWN:
        report(SERVICE_STOP_PENDING);
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
    (void)count;
    /* The first argument of a service is its name. */
    status_handle = RegisterServiceCtrlHandlerExW(arguments[0], on_control, NULL);
    report(SERVICE_RUNNING);
    WaitForSingleObject(stopping, INFINITE);
    report(SERVICE_STOPPED);
}

int main(void)
{
    /* The name does not count where a process is one service. */
    static WCHAR name[] = L"";
    const SERVICE_TABLE_ENTRYW services[] = {{name, service_main}, {NULL, NULL}};

    stopping = CreateEventW(NULL, TRUE, FALSE, NULL);
    return stopping && StartServiceCtrlDispatcherW(services) ? 0 : 1;
}
