/* Copyright: the mailops.tarpit contributors
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The lab's hand inside a Wine prefix: makes the Win32 calls that lab/wine.py asks for.
 *
 * It is a Windows program, started once per lab host. As long as it runs, Wine keeps the prefix's
 * services alive; when its standard input ends it exits, and the prefix goes down with it. So a lab that
 * was killed leaves no Windows processes behind.
 *
 * The protocol, in ASCII. It starts with a line "ready". After that, one line is a request and gets
 * exactly one line back, words separated by one space:
 *
 *   read HIVE KEY NAME                the value             -> ok TYPE BYTES
 *   write HIVE KEY NAME TYPE BYTES    of an existing key    -> ok
 *   delete HIVE KEY NAME              the value             -> ok
 *   create HIVE KEY                   with all its parents  -> ok
 *   status NAME                       of a service          -> ok NAME DISPLAY STATE START_TYPE PID EXIT_CODE
 *   stop NAME                         accepted, not done    -> ok
 *   start NAME                        accepted, not done    -> ok
 *   mode NAME START_TYPE              2, 3, 4 of winsvc.h   -> ok
 *   dependents NAME                   direct ones           -> ok [NAME ...]
 *   install NAME DISPLAY COMMAND DEP  a service, automatic  -> ok
 *
 * HIVE, TYPE, STATE, START_TYPE, PID and EXIT_CODE are decimal numbers with Windows' meaning. BYTES is data in
 * lower-case hexadecimal behind an x, so that no data is the word "x". KEY, NAME, DISPLAY, COMMAND
 * and DEP, what the service depends on or nothing, are strings: the bytes of their UTF-16LE, without a NUL at
 * the end, written like BYTES.
 *
 * Where Windows refuses, the answer is "error CODE CALL": its error number and the function that gave it.
 * A request that is not of this form is a mistake in lab/wine.py: "malformed", and nothing was called.
 */

#include "calls.h"

#include <fcntl.h>
#include <io.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    LINE_MAX_CHARS = 1 << 20, /* a request: more than any registry value of the lab */
    ARGUMENTS_MAX = 5,
};

static const struct {
    const char *verb;
    const char *arguments; /* n: a number, d: data or a string */
    void (*serve)(const Argument *arguments);
} requests[] = {
    {"read", "ndd", read_value},
    {"write", "nddnd", write_value},
    {"delete", "ndd", delete_value},
    {"create", "nd", create_key},
    {"status", "d", service_status},
    {"stop", "d", stop_service},
    {"start", "d", start_service},
    {"mode", "dn", change_start_mode},
    {"dependents", "d", dependent_services},
    {"install", "dddd", install_service},
};

static int hex_digit(char c)
{
    static const char digits[] = "0123456789abcdef";
    const char *found = c ? strchr(digits, c) : NULL;

    return found ? (int)(found - digits) : -1;
}

static BOOL parse_data(const char *word, Argument *argument)
{
    size_t length = strlen(word);

    if (word[0] != 'x' || length % 2 != 1)
        return FALSE;
    argument->size = length / 2;
    argument->data = calloc(argument->size + 2 * sizeof(WCHAR), 1);
    if (!argument->data)
        return FALSE;
    for (size_t i = 0; i < argument->size; i++) {
        int high = hex_digit(word[1 + 2 * i]), low = hex_digit(word[2 + 2 * i]);

        if (high < 0 || low < 0)
            return FALSE;
        argument->data[i] = (BYTE)(high << 4 | low);
    }
    return TRUE;
}

static BOOL parse_number(const char *word, Argument *argument)
{
    char *end;

    argument->number = strtoul(word, &end, 10);
    return *word >= '0' && *word <= '9' && *end == '\0';
}

/* Fills in the arguments from the words behind the verb; FALSE where they are not what `kinds` says. */
static BOOL parse(const char *kinds, Argument *arguments)
{
    for (; *kinds; kinds++, arguments++) {
        const char *word = strtok(NULL, " ");

        if (!word || !(*kinds == 'n' ? parse_number(word, arguments) : parse_data(word, arguments)))
            return FALSE;
    }
    return strtok(NULL, " ") == NULL;
}

static void serve(char *line)
{
    Argument arguments[ARGUMENTS_MAX] = {0};
    const char *verb = strtok(line, " ");
    size_t i = 0;

    while (verb && i < ARRAYSIZE(requests) && strcmp(verb, requests[i].verb) != 0)
        i++;
    if (verb && i < ARRAYSIZE(requests) && parse(requests[i].arguments, arguments))
        requests[i].serve(arguments);
    else
        puts("malformed");
    for (i = 0; i < ARGUMENTS_MAX; i++)
        free(arguments[i].data);
}

int main(void)
{
    static char line[LINE_MAX_CHARS];

    _setmode(_fileno(stdin), _O_BINARY);
    _setmode(_fileno(stdout), _O_BINARY);
    puts("ready");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        line[strcspn(line, "\n")] = '\0';
        serve(line);
        /* A pipe's buffer would keep the answer back. */
        if (fflush(stdout) != 0)
            return 1;
    }
    return 0;
}
