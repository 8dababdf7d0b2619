/* A program whose header may be of another version than its library (test_growth.py): NEWER has one more member at the
 * end of each struct that may grow. Prints what the library filled in of those that this header has. */
#include <shmem_providers.h>
#include <stdio.h>
#include <string.h>

static int fail(const shmp_error *error) {
    fprintf(stderr, "%s: %s: %s\n", error->call, shmp_error_text(error->code), error->message);
    return 1;
}

typedef struct sighting {
    char id[20];
    size_t filled;
} sighting;

static int look(void *context, const shmp_listed *segment) {
    sighting *seen = (sighting *)context;
    if (strcmp(segment->id, seen->id) != 0) return 0;
    seen->filled = segment->struct_size;
    return 1;
}

int main(void) {
    shmp_provider *provider;
    shmp_shmem *shmem;
    shmp_description description;
    shmp_provider_options options;
    shmp_limits limits;
    shmp_error error;
    sighting seen;

    memset(&options, 0, sizeof options);
    memset(&limits, 0x5a, sizeof limits);
    memset(&seen, 0, sizeof seen);
    options.struct_size = sizeof options;
    limits.struct_size = sizeof limits;
    if (shmp_check_abi(&error) < 0) return fail(&error);
#ifdef NEWER
    options.novelty = 1;
    if (shmp_provider_open("posix", &options, &provider, &error) == 0) return 2;
    fprintf(stderr, "%s: %s\n", error.call, error.message);
    options.novelty = 0;
#endif
    if (shmp_provider_open("posix", &options, &provider, &error) < 0) return fail(&error);
    if (shmp_provider_limits(provider, &limits, &error) < 0) return fail(&error);
    if (shmp_create(provider, 1, 0, &shmem, &error) < 0) return fail(&error);
    if (shmp_describe(shmem, &description, &error) < 0) return fail(&error);
    memcpy(seen.id, description.id, sizeof seen.id);
    if (shmp_list(provider, look, &seen, &error) < 0) return fail(&error);
    printf("limits %d listed %d\n", (int)(limits.struct_size - sizeof limits),
           (int)(seen.filled - sizeof(shmp_listed)));
#ifdef NEWER
    if (limits.novelty != 0x5a5a5a5a5a5a5a5aull) return 3; /* untouched: the library does not know it */
#endif
    if (shmp_close(shmem, &error) < 0) return fail(&error);
    shmp_provider_close(provider);
    return 0;
}
