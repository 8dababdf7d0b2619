/* Linked with a target that afl-cc did not make. */

/* The runtimes that were built with glibc 2.38 want names that an older one lacks. */
#include <stdlib.h>
extern long __isoc23_strtol(const char *text, char **end, int base);
extern unsigned long __isoc23_strtoul(const char *text, char **end, int base);
__attribute__((weak)) long __isoc23_strtol(const char *text, char **end, int base) { return strtol(text, end, base); }
__attribute__((weak)) unsigned long __isoc23_strtoul(const char *text, char **end, int base) {
    return strtoul(text, end, base);
}

#ifdef DICTIONARY /* as afl-clang-lto collects it: a length, so many bytes, and so on */
extern unsigned char *__afl_dictionary;
extern unsigned __afl_dictionary_len;
static unsigned char dictionary[] = "\2ab\10\177KEYWORD";
__attribute__((constructor(101))) static void offer(void) {
    __afl_dictionary = dictionary;
    __afl_dictionary_len = sizeof dictionary - 1;
}
#endif

#ifdef LARGE /* what clang has counted edges with, as if there were more than the 65536 that fit into AFL's first map  \
              */
__attribute__((used, section("__sancov_guards"))) static unsigned guards[80000];
#endif
