/* Copyright: the mailops.tarpit contributors
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * What the helper can do in Windows: one function a request. Each takes its arguments as helper.c read
 * them, makes the calls, and prints exactly one line of answer.
 */

#ifndef LAB_CALLS_H
#define LAB_CALLS_H

#define WIN32_LEAN_AND_MEAN
#include <windows.h>

/* One word of a request: a number, or data. Data has four zero bytes behind `size`: it is a string too, and
 * a list of one string. */
typedef struct {
    DWORD number;
    size_t size;
    BYTE *data;
} Argument;

void read_value(const Argument *arguments);
void write_value(const Argument *arguments);
void delete_value(const Argument *arguments);
void create_key(const Argument *arguments);
void service_status(const Argument *arguments);
void stop_service(const Argument *arguments);
void start_service(const Argument *arguments);
void change_start_mode(const Argument *arguments);
void dependent_services(const Argument *arguments);
void install_service(const Argument *arguments);

#endif
