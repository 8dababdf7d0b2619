/* What a stranger writes, who knows the header only. Compiles as C99 and as C++11. */
#include <shmem_providers.h>
#include <stdio.h>
#include <string.h>

static int fail(const shmp_error *error) {
    fprintf(stderr, "%s: %s: %s\n", error->call, shmp_error_text(error->code), error->message);
    return 1;
}

int main(void) {
    shmp_provider *provider;
    shmp_shmem *mine, *other, *third;
    shmp_description description;
    shmp_error error;

    if (shmp_check_abi(&error) < 0) return fail(&error);
    if (shmp_provider_open("std", NULL, &provider, &error) < 0) return fail(&error);
    if (shmp_create(provider, 65536, 0, &mine, &error) < 0) return fail(&error);
    if (shmp_describe(mine, &description, &error) < 0) return fail(&error);
    if (shmp_attach(provider, &description, 0, &other, &error) < 0) return fail(&error);
    if (shmp_to_env(mine, "STRANGER_MAP", &error) < 0) return fail(&error);
    if (shmp_from_env(provider, "STRANGER_MAP", SHMP_READ_ONLY, &third, &error) < 0) return fail(&error);

    strcpy((char *)shmp_data(other), "shared");
    printf("%s %s\n", (const char *)shmp_data(mine), (const char *)shmp_data(third));

    if (shmp_close(third, &error) < 0 || shmp_close(other, &error) < 0 || shmp_close(mine, &error) < 0)
        return fail(&error);
    shmp_provider_close(provider);
    return 0;
}
