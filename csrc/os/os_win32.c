/* System calls of Windows. */
#include "os/platform.h"
#if SHMP_HAVE_WIN32
#define WIN32_LEAN_AND_MEAN
#define _CRT_RAND_S             /* stdlib.h: rand_s */
#define _CRT_SECURE_NO_WARNINGS /* MSVC */

#include "os/fault.h"
#include "os/os_win32.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <windows.h>

static int last_error(void) { return -(int)GetLastError(); }

static int result_of_call(BOOL is_done) { return is_done ? 0 : last_error(); }

long shmp__os_pid(void) { return (long)GetCurrentProcessId(); }

/* There is no fork. */
int shmp__os_map_wiped_on_fork(void **ret_data) {
    *ret_data = NULL;
    return 0;
}

int shmp__os_unmap(void *data, size_t size) {
    (void)size;
    return result_of_call(SYS_RELEASE(UnmapViewOfFile, (data)));
}

void *shmp__os_allocate(size_t size) { return SYS_OR(NULL, calloc, (1, size)); }

/* Not getenv and setenv: each C runtime of a process has a copy of the environment, and children get the system's. */
const char *shmp__os_getenv(const char *name, char room[SHMP__ENV_ROOM]) {
    SetLastError(ERROR_SUCCESS); /* an empty value leaves it as it is */
    DWORD length = GetEnvironmentVariableA(name, room, SHMP__ENV_ROOM);
    if (length == 0 && GetLastError() == ERROR_ENVVAR_NOT_FOUND) return NULL;
    if (length >= SHMP__ENV_ROOM) memset(room, '?', SHMP__ENV_ROOM - 1); /* it is undefined */
    room[length < SHMP__ENV_ROOM ? length : SHMP__ENV_ROOM - 1] = 0;
    return room;
}

int shmp__os_is_privileged(void) { return 0; }

int shmp__os_setenv(const char *name, const char *value) {
    return result_of_call(SYS_OR(FALSE, SetEnvironmentVariableA, (name, value)));
}

void shmp__os_unsetenv(const char *name) { (void)SetEnvironmentVariableA(name, NULL); }

int shmp__os_dup(int fd) {
    (void)fd; /* no segment here is a descriptor */
    return -ERROR_NOT_SUPPORTED;
}

const char shmp__os_memory_call[] = "GlobalMemoryStatusEx";

int shmp__os_free_memory(unsigned long long *ret_bytes) {
    MEMORYSTATUSEX status;
    status.dwLength = sizeof status;
    if (!SYS_OR(FALSE, GlobalMemoryStatusEx, (&status))) return last_error();
    *ret_bytes = status.ullAvailPageFile < status.ullAvailVirtual ? status.ullAvailPageFile : status.ullAvailVirtual;
    return 0;
}

int shmp__os_is_untold(int error) {
    (void)error;
    return 0;
}

const char *shmp__os_remedy(const char *call, int os_error) {
    (void)call;
    switch (os_error) {
    case ERROR_COMMITMENT_LIMIT:
    case ERROR_NOT_ENOUGH_MEMORY:
    case ERROR_OUTOFMEMORY:
    case ERROR_NO_SYSTEM_RESOURCES: return "; free memory, or enlarge the page file";
    default: return "";
    }
}

const char shmp__os_random_call[] = "rand_s";

int shmp__os_random(void *ret_bytes, size_t length) {
    unsigned char *at = ret_bytes;
    while (length > 0) {
        unsigned value;
        size_t step = length < sizeof value ? length : sizeof value;
        if (SYS_OR(EINVAL, rand_s, (&value)) != 0) return -ERROR_GEN_FAILURE;
        memcpy(at, &value, step);
        at += step;
        length -= step;
    }
    return 0;
}

typedef struct user_rights {
    SECURITY_ATTRIBUTES attributes;
    SECURITY_DESCRIPTOR descriptor;
    union { /* aligned */
        ACL list;
        unsigned char room[sizeof(ACL) + sizeof(ACCESS_ALLOWED_ACE) + SECURITY_MAX_SID_SIZE];
    } access;
} user_rights;

const size_t shmp__os_security_size = sizeof(user_rights);

int shmp__os_only_this_user(void *ret_security) {
    user_rights *made = ret_security;
    union {
        TOKEN_USER user;
        unsigned char room[sizeof(TOKEN_USER) + SECURITY_MAX_SID_SIZE];
    } token;
    HANDLE process;
    DWORD length;
    if (!SYS_OR(FALSE, OpenProcessToken, (GetCurrentProcess(), TOKEN_QUERY, &process))) return last_error();
    int result =
        result_of_call(SYS_OR(FALSE, GetTokenInformation, (process, TokenUser, &token, sizeof token, &length)));
    (void)CloseHandle(process);
    if (result < 0) return result;
    if (!SYS_OR(FALSE, InitializeAcl, (&made->access.list, sizeof made->access, ACL_REVISION)) ||
        !SYS_OR(FALSE, AddAccessAllowedAce, (&made->access.list, ACL_REVISION, GENERIC_ALL, token.user.User.Sid)) ||
        !SYS_OR(FALSE, InitializeSecurityDescriptor, (&made->descriptor, SECURITY_DESCRIPTOR_REVISION)) ||
        !SYS_OR(FALSE, SetSecurityDescriptorDacl, (&made->descriptor, TRUE, &made->access.list, FALSE)))
        return last_error();
    made->attributes.nLength = sizeof made->attributes;
    made->attributes.lpSecurityDescriptor = &made->descriptor;
    made->attributes.bInheritHandle = FALSE;
    return 0;
}

int shmp__os_section_create(const char *name, size_t size, void *security, void **ret_section) {
    uint64_t bytes = size;
    HANDLE section = SYS_OR(NULL, CreateFileMappingA,
                            (INVALID_HANDLE_VALUE, security, PAGE_READWRITE | SEC_COMMIT, (DWORD)(bytes >> 32),
                             (DWORD)(bytes & 0xffffffffu), name));
    if (!section) return last_error();
    if (GetLastError() == ERROR_ALREADY_EXISTS) { /* and this is a handle on it */
        (void)CloseHandle(section);
        return -ERROR_ALREADY_EXISTS;
    }
    *ret_section = section;
    return 0;
}

static DWORD access(int read_only) { return read_only ? FILE_MAP_READ : FILE_MAP_READ | FILE_MAP_WRITE; }

int shmp__os_section_open(const char *name, int read_only, void **ret_section) {
    HANDLE section = SYS_OR(NULL, OpenFileMappingA, (access(read_only), FALSE, name));
    if (!section) return last_error();
    *ret_section = section;
    return 0;
}

int shmp__os_section_map(void *section, int read_only, void **ret_data) {
    void *data = SYS_OR(NULL, MapViewOfFile, (section, access(read_only), 0, 0, 0));
    if (!data) return last_error();
    *ret_data = data;
    return 0;
}

int shmp__os_section_size(void *data, size_t *ret_size) {
    MEMORY_BASIC_INFORMATION region;
    if (SYS_OR(0, VirtualQuery, (data, &region, sizeof region)) == 0) return last_error();
    *ret_size = region.RegionSize;
    return 0;
}

int shmp__os_handle_close(void *handle) { return result_of_call(SYS_RELEASE(CloseHandle, (handle))); }

int shmp__os_handle_inherit(void *handle) {
    return result_of_call(SYS_OR(FALSE, SetHandleInformation, (handle, HANDLE_FLAG_INHERIT, HANDLE_FLAG_INHERIT)));
}

#endif
