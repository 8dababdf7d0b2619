/* A program under test, in C: counts the bytes of its argument in a map that its host shares.
 *
 *   cc examples/target.c $(python -m shmem_providers --cflags --libs) -o target
 *
 * The host is examples/read_map.py; MY_MAP and MY_MAP_SIZE in the environment come from there. */
#include <shmem_providers.h>
#include <stdio.h>

static int fail(const shmp_error *error) {
    fprintf(stderr, "%s: %s: %s\n", error->call, shmp_error_text(error->code), error->message);
    return 1;
}

int main(int count, char **arguments) {
    shmp_error error;
    shmp_provider *provider;
    shmp_shmem *map;
    if (shmp_check_abi(&error) < 0) return fail(&error);
    if (shmp_provider_open("std", NULL, &provider, &error) < 0) return fail(&error);
    if (shmp_from_env(provider, "MY_MAP", 0, &map, &error) < 0) return fail(&error);

    unsigned char *hits = shmp_data(map);
    for (const char *at = count > 1 ? arguments[1] : ""; *at; at++) hits[(unsigned char)*at % shmp_size(map)]++;

    if (shmp_close(map, &error) < 0) return fail(&error);
    shmp_provider_close(provider);
    return 0;
}
