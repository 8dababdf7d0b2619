/* A service, or a client of one, of this library in C: what service.py compares with the Rust crate's.
 *
 *   service serve ADDRESS            until stdin ends
 *   service client PROVIDER ADDRESS  PROVIDER: served, rc; obeys "time WHAT COUNT SIZE" as tests/interop/seed does */
#include "shmem_providers.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

static int fail(const shmp_error *error) {
    printf("error: %s: %s\n", error->call, error->message);
    return 1;
}

static shmp_provider_options options(void) {
    return (shmp_provider_options){.struct_size = sizeof(shmp_provider_options)};
}

static int serve(const char *address) {
    shmp_service_options how = {.struct_size = sizeof how, .address = address};
    shmp_provider *memfd;
    shmp_service *service;
    shmp_error error;
    if (shmp_provider_open("memfd", NULL, &memfd, &error) < 0) return fail(&error);
    if (shmp_service_start(memfd, &how, &service, &error) < 0) return fail(&error);
    shmp_provider_close(memfd);
    puts("started");
    (void)fflush(stdout);
    while (getchar() != EOF) {
    }
    return shmp_service_stop(service, &error) < 0 ? fail(&error) : 0;
}

static int open_client(const char *name, const char *address, shmp_provider **ret_provider, shmp_error *reterr) {
    shmp_provider_options how = options(), outer = options();
    shmp_provider *memfd, *served;
    int result = shmp_provider_open("memfd", NULL, &memfd, reterr);
    if (result < 0) return result;
    how.inner = memfd;
    how.address = address;
    result = shmp_provider_open("served", &how, &served, reterr);
    shmp_provider_close(memfd);
    if (result < 0 || !strcmp(name, "served")) {
        if (result == 0) *ret_provider = served;
        return result;
    }
    outer.inner = served;
    result = shmp_provider_open(name, &outer, ret_provider, reterr);
    shmp_provider_close(served);
    return result;
}

static long long now(void) {
    struct timespec time;
    (void)clock_gettime(CLOCK_MONOTONIC, &time);
    return (long long)time.tv_sec * 1000000000 + time.tv_nsec;
}

static long long nanoseconds(shmp_provider *provider, const char *what, long count, size_t size, shmp_error *reterr) {
    shmp_shmem *kept, *shmem;
    shmp_description description;
    if (shmp_create(provider, size, 0, &kept, reterr) < 0) return -1;
    if (shmp_describe(kept, &description, reterr) < 0) return -1;
    const long long start = now();
    for (long i = 0; i < count; i++) {
        int result = strcmp(what, "new") ? shmp_attach(provider, &description, 0, &shmem, reterr)
                                         : shmp_create(provider, size, 0, &shmem, reterr);
        if (result < 0 || shmp_close(shmem, reterr) < 0) return -1;
    }
    const long long taken = now() - start;
    return shmp_close(kept, reterr) < 0 ? -1 : taken / count;
}

static int be_client(const char *name, const char *address) {
    shmp_provider *provider;
    shmp_error error;
    if (open_client(name, address, &provider, &error) < 0) return fail(&error);
    puts("started");
    (void)fflush(stdout);
    char line[100], what[20];
    while (fgets(line, sizeof line, stdin)) {
        long count;
        size_t size;
        if (sscanf(line, "time %19s %ld %zu", what, &count, &size) != 3) return 2;
        const long long taken = nanoseconds(provider, what, count, size, &error);
        if (taken < 0) return fail(&error);
        printf("%lld\n", taken);
        (void)fflush(stdout);
    }
    shmp_provider_close(provider);
    return 0;
}

int main(int argc, char **argv) {
    if (argc == 3 && !strcmp(argv[1], "serve")) return serve(argv[2]);
    if (argc == 4 && !strcmp(argv[1], "client")) return be_client(argv[2], argv[3]);
    (void)fputs("usage: service serve ADDRESS | client PROVIDER ADDRESS\n", stderr);
    return 2;
}
