/* What is fuzzed: a crash three comparisons deep, a hang, and a crash that only a dictionary finds. How the input
 * comes:
 *
 *   afl-cc target.c -o target             from standard input, or from the file that is named; a process for each run
 *   afl-cc -DLOOP target.c -o target      the same, but a process does many runs
 *   afl-cc -DSHARED target.c -o target    from shared memory, and a process does many runs: the fastest */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static volatile unsigned depth; /* or an optimizer would make one comparison of three, and nothing would lead to it */

static void parse(const unsigned char *bytes, size_t size) {
    if (size < 3) return;
    if (bytes[0] == 'B') {
        depth++;
        if (bytes[1] == 'U') {
            depth++;
            if (bytes[2] == 'G') abort();
        }
    }
    if (size >= 4 && memcmp(bytes, "HANG", 4) == 0)
        for (;;) pause();
    if (size >= 8 && memcmp(bytes, "\x7fKEYWORD", 8) == 0) raise(SIGSEGV);
}

#ifdef SHARED
__AFL_FUZZ_INIT();

int main(void) {
    __AFL_INIT();
    const unsigned char *bytes = __AFL_FUZZ_TESTCASE_BUF;
    while (__AFL_LOOP(10000)) parse(bytes, (size_t)__AFL_FUZZ_TESTCASE_LEN);
    return 0;
}
#else
static void read_and_parse(void) {
    unsigned char bytes[1024];
    ssize_t size = read(0, bytes, sizeof bytes);
    if (size > 0) parse(bytes, (size_t)size);
}

int main(int count, char **arguments) {
    if (count > 1) {
        int file = open(arguments[1], O_RDONLY);
        if (file < 0 || dup2(file, 0) < 0) return 1;
    }
#ifdef LOOP
    while (__AFL_LOOP(10000)) read_and_parse();
#else
    read_and_parse();
#endif
    return 0;
}
#endif
