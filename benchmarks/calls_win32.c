/* The contenders of Windows. */
#define _CRT_RAND_S
#include "calls.h"

#include <stdio.h>
#include <stdlib.h>
#include <windows.h>

long long now(void) {
    LARGE_INTEGER count, frequency;
    QueryPerformanceCounter(&count);
    QueryPerformanceFrequency(&frequency);
    return (long long)((double)count.QuadPart * 1e9 / (double)frequency.QuadPart);
}

static int map(segment *s) {
    s->data = s->section ? MapViewOfFile(s->section, FILE_MAP_READ | FILE_MAP_WRITE, 0, 0, 0) : NULL;
    return s->data ? 0 : -1;
}

static int close_all(segment *s) { return UnmapViewOfFile(s->data) && CloseHandle(s->section) ? 0 : -1; }

static int bare_create(segment *s) {
    s->section = CreateFileMappingA(INVALID_HANDLE_VALUE, NULL, PAGE_READWRITE, 0, (DWORD)s->size, s->name);
    return map(s);
}

static int attach(segment *s, const segment *of) {
    s->section = OpenFileMappingA(FILE_MAP_READ | FILE_MAP_WRITE, FALSE, of->name);
    return map(s);
}

static int careful_create(segment *s) {
    unsigned high, low;
    if (rand_s(&high) || rand_s(&low)) return -1;
    snprintf(s->name, sizeof s->name, "bench__%04x%08x", high & 0xffff, low);
    TRY(bare_create(s));
    return GetLastError() == ERROR_ALREADY_EXISTS ? -1 : 0;
}

static int careful_attach(segment *s, const segment *of) {
    MEMORY_BASIC_INFORMATION region;
    TRY(attach(s, of));
    return VirtualQuery(s->data, &region, sizeof region) && region.RegionSize >= s->size ? 0 : -1;
}

long (*const start_other)(void (*)(shmp_description *), shmp_description *) = NULL; /* it is attached to by name */
int stop_other(long pid) { return (int)pid; }

const contender contenders[] = {
    {"win32", "bare", bare_create, close_all, attach, close_all, NULL},
    {"win32", "careful", careful_create, close_all, careful_attach, close_all, NULL},
    {"win32", "core", core_create, core_close, core_attach, core_close, NULL},
    {NULL, NULL, NULL, NULL, NULL, NULL, NULL},
};
