/* Errors: code, call, value and remedy. */
#include "core/core.h"
#include "os/os.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

const char *shmp_error_text(int code) {
    switch (code < 0 ? -(unsigned)code : (unsigned)code) {
    case 0: return "no error";
    case SHMP_EINVAL: return "malformed argument";
    case SHMP_EID: return "the id names no shared memory";
    case SHMP_ESIZE: return "the segment is smaller than its description says";
    case SHMP_EOVERFLOW: return "the size is beyond the address space";
    case SHMP_ENOTFOUND: return "no such segment any more";
    case SHMP_ENOENV: return "environment variable not set";
    case SHMP_EUNAVAILABLE: return "not available on this platform";
    case SHMP_EUNSUPPORTED: return "this provider cannot do that";
    case SHMP_ENOMEM: return "out of memory";
    case SHMP_EOS: return "a call of the operating system failed";
    case SHMP_ESERVICE: return "no service, or it refused";
    default: return "unknown error";
    }
}

static void fill(shmp_error *reterr, int code, int os_error, const char *call, const char *format, va_list values) {
    shmp_error error = {.code = -code, .os_error = os_error, .call = call};
    vsnprintf(error.message, sizeof error.message, format, values);
    *reterr = error;
}

int shmp__fail(shmp_error *reterr, int code, const char *call, const char *format, ...) {
    if (reterr) {
        va_list values;
        va_start(values, format);
        fill(reterr, code, 0, call, format, values);
        va_end(values);
    }
    return -code;
}

int shmp__fail_os(shmp_error *reterr, int os_error, const char *call, const char *format, ...) {
    if (os_error < 0) os_error = -os_error;
    if (reterr) {
        va_list values;
        va_start(values, format);
        fill(reterr, SHMP_EOS, os_error, call, format, values);
        va_end(values);
        size_t used = strlen(reterr->message);
        snprintf(reterr->message + used, sizeof reterr->message - used, "%s", shmp__os_remedy(call, os_error));
    }
    return -SHMP_EOS;
}
