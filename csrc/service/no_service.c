/* Where there is nothing to hand out: sections of Windows live as long as somebody has them anyway. */
#include "os/platform.h"
#if !SHMP_HAVE_UNIX
#include "core/core.h"

static int fail(const char *call, shmp_error *reterr) {
    return shmp__fail(reterr, SHMP_EUNSUPPORTED, call, "this system needs no service: open win32");
}

int shmp_service_start(shmp_provider *inner, const shmp_service_options *options, shmp_service **ret_service,
                       shmp_error *reterr) {
    (void)inner, (void)options, (void)ret_service;
    return fail("shmp_service_start", reterr);
}

int shmp_service_stop(shmp_service *service, shmp_error *reterr) {
    return service ? fail("shmp_service_stop", reterr) : 0;
}

const char *shmp_service_address(const shmp_service *service) {
    (void)service;
    return "";
}

int shmp_service_wait(shmp_service *service, unsigned timeout_ms) {
    (void)service, (void)timeout_ms;
    return 1;
}

int shmp_service_pre_fork(shmp_service *service, shmp_error *reterr) {
    (void)service;
    return fail("shmp_service_pre_fork", reterr);
}

int shmp_service_post_fork(shmp_service *service, int is_child, shmp_error *reterr) {
    (void)service, (void)is_child;
    return fail("shmp_service_post_fork", reterr);
}

int shmp_service_get_stats(shmp_service *service, shmp_service_stats *ret_stats, shmp_error *reterr) {
    (void)service, (void)ret_stats;
    return fail("shmp_service_get_stats", reterr);
}

#endif
