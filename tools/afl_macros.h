/* What afl-cc defines before a program: for a plain clang, by -include. The functions are in AFL++'s runtime. */
#include <unistd.h>
extern int __afl_persistent_loop(unsigned runs);
extern void __afl_manual_init(void);
extern unsigned *__afl_fuzz_len;
extern unsigned char *__afl_fuzz_ptr;

/* afl-fuzz, and the hosts of examples/afl, look for these marks in the program. */
#define AFL_MARK(name, text) __attribute__((used)) static const char name[] = text
#define __AFL_LOOP(runs)                                                                                               \
    ({                                                                                                                 \
        AFL_MARK(loop, "##SIG_AFL_PERSISTENT##");                                                                      \
        __afl_persistent_loop(runs);                                                                                   \
    })
#define __AFL_INIT()                                                                                                   \
    do {                                                                                                               \
        AFL_MARK(init, "##SIG_AFL_DEFER_FORKSRV##");                                                                   \
        __afl_manual_init();                                                                                           \
    } while (0)

#define __AFL_FUZZ_INIT()                                                                                              \
    int __afl_sharedmem_fuzzing = 1;                                                                                   \
    static unsigned char afl_alone[1 << 20]
#define __AFL_FUZZ_TESTCASE_BUF (__afl_fuzz_ptr ? __afl_fuzz_ptr : afl_alone)
#define __AFL_FUZZ_TESTCASE_LEN (__afl_fuzz_ptr ? *__afl_fuzz_len : (unsigned)read(0, afl_alone, sizeof afl_alone))
