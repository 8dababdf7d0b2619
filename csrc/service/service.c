/* A stub, until the service is written: so that what uses it links. */
#include "core/core.h"

int shmp_service_start(shmp_provider *inner, const shmp_service_options *options, shmp_service **ret_service,
                       shmp_error *reterr) {
    (void)inner, (void)options, (void)ret_service;
    return shmp__fail(reterr, SHMP_EUNSUPPORTED, "shmp_service_start", "not written yet");
}
int shmp_service_stop(shmp_service *service, shmp_error *reterr) {
    (void)service, (void)reterr;
    return 0;
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
    (void)service, (void)reterr;
    return 0;
}
int shmp_service_post_fork(shmp_service *service, int is_child, shmp_error *reterr) {
    (void)service, (void)reterr, (void)is_child;
    return 0;
}
int shmp_service_get_stats(shmp_service *service, shmp_service_stats *ret_stats, shmp_error *reterr) {
    (void)service, (void)reterr, (void)ret_stats;
    return 0;
}
