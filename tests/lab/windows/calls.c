/* Copyright: the mailops.tarpit contributors
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The helper's Win32 calls. Where one fails, the answer is its error number and its name as Windows'
 * documentation writes it: by that pair, the lab's WMI tells a missing key from a missing value.
 */

#include "calls.h"

#include <stdio.h>
#include <stdlib.h>

enum {
    CONFIG_MAX_BYTES = 8192,  /* the documented limit of QueryServiceConfig */
    NAME_MAX_CHARS = 256,     /* of a service's name */
    MANAGER_PATIENCE = 30000, /* ms until the service control manager listens */
    MANAGER_POLL = 50,        /* ms */
};

static HKEY hive(const Argument *argument)
{
    /* Windows' predefined handles are sign-extended to 64 bits. */
    return (HKEY)(LONG_PTR)(LONG)argument->number;
}

static const WCHAR *string(const Argument *argument)
{
    return (const WCHAR *)argument->data;
}

static void answer(LONG code, const char *call)
{
    if (code == ERROR_SUCCESS)
        puts("ok");
    else
        printf("error %ld %s\n", code, call);
}

static void print_data(const void *data, size_t size)
{
    const BYTE *bytes = data;

    fputs(" x", stdout);
    for (size_t i = 0; i < size; i++)
        printf("%02x", bytes[i]);
}

static void print_string(const WCHAR *text)
{
    print_data(text, wcslen(text) * sizeof(WCHAR));
}

/* -- registry: the 64-bit view, whatever this program was compiled for -- */

static BOOL open_key(const Argument *arguments, REGSAM access, HKEY *key)
{
    LONG code = RegOpenKeyExW(hive(&arguments[0]), string(&arguments[1]), 0, access | KEY_WOW64_64KEY, key);

    if (code != ERROR_SUCCESS)
        answer(code, "RegOpenKeyEx");
    return code == ERROR_SUCCESS;
}

void read_value(const Argument *arguments)
{
    const WCHAR *name = string(&arguments[2]);
    DWORD type = 0, size = 0;
    BYTE *data = NULL;
    HKEY key;
    LONG code;

    if (!open_key(arguments, KEY_QUERY_VALUE, &key))
        return;
    /* Ask for the size, then for the data; again where the value grew in between. */
    code = RegQueryValueExW(key, name, NULL, &type, NULL, &size);
    if (code == ERROR_SUCCESS) {
        do {
            free(data);
            data = malloc(size + 1);
            code = data ? RegQueryValueExW(key, name, NULL, &type, data, &size) : ERROR_NOT_ENOUGH_MEMORY;
        } while (code == ERROR_MORE_DATA);
    }
    if (code == ERROR_SUCCESS) {
        printf("ok %lu", type);
        print_data(data, size);
        putchar('\n');
    } else {
        answer(code, "RegQueryValueEx");
    }
    free(data);
    RegCloseKey(key);
}

void write_value(const Argument *arguments)
{
    const Argument *value = &arguments[4];
    HKEY key;

    if (!open_key(arguments, KEY_SET_VALUE, &key))
        return;
    answer(RegSetValueExW(key, string(&arguments[2]), 0, arguments[3].number, value->data, (DWORD)value->size),
           "RegSetValueEx");
    RegCloseKey(key);
}

void delete_value(const Argument *arguments)
{
    HKEY key;

    if (!open_key(arguments, KEY_SET_VALUE, &key))
        return;
    answer(RegDeleteValueW(key, string(&arguments[2])), "RegDeleteValue");
    RegCloseKey(key);
}

void create_key(const Argument *arguments)
{
    HKEY key;
    LONG code = RegCreateKeyExW(hive(&arguments[0]), string(&arguments[1]), 0, NULL, REG_OPTION_NON_VOLATILE,
                                KEY_WRITE | KEY_WOW64_64KEY, NULL, &key, NULL);

    answer(code, "RegCreateKeyEx");
    if (code == ERROR_SUCCESS)
        RegCloseKey(key);
}

/* -- services: each request opens its own handles, as a client of the service control manager does -- */

typedef struct {
    SC_HANDLE manager;
    SC_HANDLE service;
} Service;

static void answer_call(BOOL done, const char *call)
{
    answer(done ? ERROR_SUCCESS : (LONG)GetLastError(), call);
}

/* The service control manager, NULL and the refusal answered where there is none. It starts with the first process of
   a prefix, beside us: on a busy machine it may not listen yet. */
static SC_HANDLE open_manager(DWORD access)
{
    SC_HANDLE manager;

    for (int waited = 0;; waited += MANAGER_POLL) {
        manager = OpenSCManagerW(NULL, NULL, access);
        if (manager || GetLastError() != RPC_S_SERVER_UNAVAILABLE || waited >= MANAGER_PATIENCE)
            break;
        Sleep(MANAGER_POLL);
    }
    if (!manager)
        answer_call(FALSE, "OpenSCManager");
    return manager;
}

static BOOL open_service(const Argument *name, DWORD access, Service *opened)
{
    opened->manager = open_manager(SC_MANAGER_CONNECT);
    if (!opened->manager)
        return FALSE;
    opened->service = OpenServiceW(opened->manager, string(name), access);
    if (!opened->service) {
        answer_call(FALSE, "OpenService");
        CloseServiceHandle(opened->manager);
        return FALSE;
    }
    return TRUE;
}

static void close_service(const Service *opened)
{
    CloseServiceHandle(opened->service);
    CloseServiceHandle(opened->manager);
}

static void print_status(const Service *opened)
{
    SERVICE_STATUS_PROCESS status;
    union {
        QUERY_SERVICE_CONFIGW config;
        BYTE bytes[CONFIG_MAX_BYTES];
    } reply;
    const WCHAR *display;
    WCHAR name[NAME_MAX_CHARS + 1];
    DWORD needed, length = ARRAYSIZE(name);

    if (!QueryServiceStatusEx(opened->service, SC_STATUS_PROCESS_INFO, (BYTE *)&status, sizeof status,
                              &needed)) {
        answer_call(FALSE, "QueryServiceStatusEx");
        return;
    }
    if (!QueryServiceConfigW(opened->service, &reply.config, sizeof reply, &needed)) {
        answer_call(FALSE, "QueryServiceConfig");
        return;
    }
    display = reply.config.lpDisplayName;
    /* The request may spell the name in other letter case; only the display name leads to the true one. */
    if (!GetServiceKeyNameW(opened->manager, display, name, &length)) {
        answer_call(FALSE, "GetServiceKeyName");
        return;
    }
    fputs("ok", stdout);
    print_string(name);
    print_string(display);
    printf(" %lu %lu %lu %lu\n", status.dwCurrentState, reply.config.dwStartType, status.dwProcessId,
           status.dwWin32ExitCode);
}

void service_status(const Argument *arguments)
{
    Service opened;

    if (!open_service(&arguments[0], SERVICE_QUERY_STATUS | SERVICE_QUERY_CONFIG, &opened))
        return;
    print_status(&opened);
    close_service(&opened);
}

void stop_service(const Argument *arguments)
{
    SERVICE_STATUS status;
    Service opened;

    if (!open_service(&arguments[0], SERVICE_STOP, &opened))
        return;
    answer_call(ControlService(opened.service, SERVICE_CONTROL_STOP, &status), "ControlService");
    close_service(&opened);
}

void start_service(const Argument *arguments)
{
    Service opened;

    if (!open_service(&arguments[0], SERVICE_START, &opened))
        return;
    answer_call(StartServiceW(opened.service, 0, NULL), "StartService");
    close_service(&opened);
}

void change_start_mode(const Argument *arguments)
{
    Service opened;

    if (!open_service(&arguments[0], SERVICE_CHANGE_CONFIG, &opened))
        return;
    answer_call(ChangeServiceConfigW(opened.service, SERVICE_NO_CHANGE, arguments[1].number, SERVICE_NO_CHANGE,
                                     NULL, NULL, NULL, NULL, NULL, NULL, NULL),
                "ChangeServiceConfig");
    close_service(&opened);
}

/* Is the word among those of a list that ends with an empty one? Letter case does not count. */
static BOOL contains(const WCHAR *list, const WCHAR *word)
{
    for (; list && *list; list += wcslen(list) + 1)
        if (_wcsicmp(list, word) == 0)
            return TRUE;
    return FALSE;
}

static BOOL depends_on(const WCHAR *name, const WCHAR *antecedent)
{
    static const WCHAR services[] = L"SYSTEM\\CurrentControlSet\\Services\\";
    WCHAR key[ARRAYSIZE(services) + NAME_MAX_CHARS], list[CONFIG_MAX_BYTES / sizeof(WCHAR)];
    DWORD size = sizeof list;

    wcscpy(key, services);
    wcsncat(key, name, NAME_MAX_CHARS);
    return RegGetValueW(HKEY_LOCAL_MACHINE, key, L"DependOnService", RRF_RT_REG_MULTI_SZ, NULL, list, &size) ==
               ERROR_SUCCESS &&
           contains(list, antecedent);
}

/* EnumDependentServices is the call for this, and QueryServiceConfig tells what a service depends on; but Wine
 * has only the name of the one, and the other forgets. What CreateService was given is in the registry. */
void dependent_services(const Argument *arguments)
{
    static union {
        ENUM_SERVICE_STATUSW services[1];
        BYTE bytes[256 * 1024]; /* the documented limit of EnumServicesStatus */
    } reply;
    DWORD needed, count, resume = 0;
    SC_HANDLE manager;
    Service opened;

    /* The same refusal as everywhere for a service that is not there. */
    if (!open_service(&arguments[0], SERVICE_QUERY_STATUS, &opened))
        return;
    close_service(&opened);
    manager = open_manager(SC_MANAGER_CONNECT | SC_MANAGER_ENUMERATE_SERVICE);
    if (!manager)
        return;
    if (!EnumServicesStatusW(manager, SERVICE_WIN32, SERVICE_STATE_ALL, reply.services, sizeof reply, &needed,
                             &count, &resume)) {
        answer_call(FALSE, "EnumServicesStatus");
    } else {
        fputs("ok", stdout);
        for (DWORD i = 0; i < count; i++)
            if (depends_on(reply.services[i].lpServiceName, string(&arguments[0])))
                print_string(reply.services[i].lpServiceName);
        putchar('\n');
    }
    CloseServiceHandle(manager);
}

void install_service(const Argument *arguments)
{
    SC_HANDLE manager = open_manager(SC_MANAGER_CREATE_SERVICE), service;

    if (!manager)
        return;
    service = CreateServiceW(manager, string(&arguments[0]), string(&arguments[1]), SERVICE_ALL_ACCESS,
                             SERVICE_WIN32_OWN_PROCESS, SERVICE_AUTO_START, SERVICE_ERROR_NORMAL,
                             string(&arguments[2]), NULL, NULL, string(&arguments[3]), NULL, NULL);
    answer_call(service != NULL, "CreateService");
    if (service)
        CloseServiceHandle(service);
    CloseServiceHandle(manager);
}
