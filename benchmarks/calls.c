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

int core_attach_other(segment *s, const segment *of) {
    TRY(shmp_attach(provider, &of->other_description, 0, &s->shmem, NULL));
    s->data = shmp_data(s->shmem);
    return 0;
}

static int core_clone(segment *s, const segment *of) { return shmp_clone(of->shmem, 0, &s->shmem, NULL); }

int core_close(segment *s) { return shmp_close(s->shmem, NULL); }

static segment originals[MOST_CONTENDERS]; /* what each one attaches to */
static const segment *described;           /* the library's */

static void tell(shmp_description *ret_description) { (void)shmp_describe(described->shmem, ret_description, NULL); }

/* What the other process calls it, or NULL. */
EXPORT const char *other_id(void) { return described && described->other ? described->other_description.id : NULL; }

static int once(const contender *c, int (*attach)(segment *, const segment *), const segment *original, size_t size,
                int touched) {
    segment s = {.size = size, .name = "/bench"};
    TRY(attach ? attach(&s, original) : c->create(&s));
    if (touched) touch(s.data, size);
    return attach ? c->detach(&s) : c->destroy(&s);
}

/* Called before and after run(), not inside it: the kernel's mmap takes 4 or 5 us, depending on what else is
 * mapped, which must be the same for all contenders. */
EXPORT int set_up(const char *mechanism, size_t size) {
    TRY(shmp_provider_open(mechanism, NULL, &provider, NULL));
    described = NULL;
    for (int i = 0; contenders[i].mechanism; i++) {
        if (strcmp(contenders[i].mechanism, mechanism)) continue;
        originals[i] = (segment){.size = size};
        snprintf(originals[i].name, sizeof originals[i].name, "/b%p", (void *)&originals[i]); /* a base has its own */
        TRY(contenders[i].create(&originals[i]));
        if (!originals[i].shmem) continue;
        TRY(shmp_describe(originals[i].shmem, &originals[i].description, NULL));
        described = &originals[i];
    }
    if (!start_other || !described) return 0;
    shmp_description description;
    long other = start_other(tell, &description);
    TRY(other);
    for (int i = 0; contenders[i].mechanism; i++) {
        originals[i].other = other;
        originals[i].other_description = description;
    }
    return 0;
}

EXPORT int tear_down(const char *mechanism) {
    if (described && described->other) TRY(stop_other(described->other));
    for (int i = 0; contenders[i].mechanism; i++)
        if (!strcmp(contenders[i].mechanism, mechanism)) TRY(contenders[i].destroy(&originals[i]));
    shmp_provider_close(provider);
    return 0;
}

/* Nanoseconds for `n` times "create" (and destroy), "touch" (the same with every page written to), "attach" (and
 * detach), "attach other" (to what another process has) or "clone" (and close); -1: errno says what failed. */
EXPORT long long run(const char *mechanism, const char *name, const char *job, int n, size_t size) {
    int i = 0, touched = !strcmp(job, "touch");
    while (strcmp(contenders[i].mechanism, mechanism) || strcmp(contenders[i].name, name)) i++;
    const contender *c = &contenders[i];
    int (*attach)(segment *, const segment *) = NULL;
    if (!strcmp(job, "attach")) attach = c->attach;
    if (!strcmp(job, "attach other")) attach = c->attach_other;
    if (!strcmp(job, "clone")) attach = originals[i].shmem ? core_clone : c->attach; /* they attach once more */
    long long start = now();
    for (; n > 0; n--) TRY(once(c, attach, &originals[i], size, touched));
    return now() - start;
}
