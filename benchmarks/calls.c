/* Times the contenders written in C.
 *
 * "bare" is what a hasty programmer writes. "careful" adds the calls that make it safe: seals, random
 * names, the lock that tells a live segment from a leftover, free space, and checks on attach.
 * "core" is this library through its header. */
#include "calls.h"

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

enum { MOST_CONTENDERS = 9 };

EXPORT void touch(void *data, size_t size) {
    for (size_t at = 0; at < size; at += 4096) ((volatile char *)data)[at] = 1;
}

static shmp_provider *provider;

int core_create(segment *s) {
    TRY(shmp_create(provider, s->size, 0, &s->shmem, NULL));
    s->data = shmp_data(s->shmem);
    return 0;
}

int core_attach(segment *s, const segment *of) {
    TRY(shmp_attach(provider, &of->description, 0, &s->shmem, NULL));
    s->data = shmp_data(s->shmem);
    return 0;
}

int core_close(segment *s) { return shmp_close(s->shmem, NULL); }

static segment originals[MOST_CONTENDERS]; /* what each one attaches to */

static int once(const contender *c, const segment *original, size_t size, int touched) {
    segment s = {.size = size, .name = "/bench"};
    TRY(original ? c->attach(&s, original) : c->create(&s));
    if (touched) touch(s.data, size);
    return original ? c->detach(&s) : c->destroy(&s);
}

/* Called before and after run(), not inside it: the kernel's mmap takes 4 or 5 us, depending on what else is
 * mapped, which must be the same for all contenders. */
EXPORT int set_up(const char *mechanism, size_t size) {
    TRY(shmp_provider_open(mechanism, NULL, &provider, NULL));
    for (int i = 0; contenders[i].mechanism; i++) {
        if (strcmp(contenders[i].mechanism, mechanism)) continue;
        originals[i] = (segment){.size = size, .name = "/bench_original"};
        TRY(contenders[i].create(&originals[i]));
        if (originals[i].shmem) TRY(shmp_describe(originals[i].shmem, &originals[i].description, NULL));
    }
    return 0;
}

EXPORT int tear_down(const char *mechanism) {
    for (int i = 0; contenders[i].mechanism; i++)
        if (!strcmp(contenders[i].mechanism, mechanism)) TRY(contenders[i].destroy(&originals[i]));
    shmp_provider_close(provider);
    return 0;
}

/* Nanoseconds for `n` times "create" (and destroy), "touch" (the same with every page written to) or
 * "attach" (and detach); -1: errno says what failed. */
EXPORT long long run(const char *mechanism, const char *name, const char *job, int n, size_t size) {
    int i = 0, touched = !strcmp(job, "touch");
    while (strcmp(contenders[i].mechanism, mechanism) || strcmp(contenders[i].name, name)) i++;
    const segment *original = strcmp(job, "attach") ? NULL : &originals[i];
    long long start = now();
    for (; n > 0; n--) TRY(once(&contenders[i], original, size, touched));
    return now() - start;
}
