/* Whether to look for what may come in a moment before sleeping until it comes: to be woken on another CPU takes longer
 * than most requests and replies do. It is tried the more seldom the longer it was in vain, as it is where both sides
 * share a CPU. */
#ifndef SHMP_PATIENCE_H
#define SHMP_PATIENCE_H

enum { SHMP__MOST_PATIENCE = 32, SHMP__MOST_SLEEPS = 128 };

typedef struct shmp__patience {
    unsigned left;   /* more with each success */
    unsigned sleeps; /* before it is tried again */
} shmp__patience;

static inline int shmp__patience_lasts(shmp__patience *patience) {
    if (patience->sleeps == 0) return 1;
    patience->sleeps--;
    return 0;
}

static inline void shmp__patience_learn(shmp__patience *patience, int has_come) {
    if (has_come) {
        if (patience->left < SHMP__MOST_PATIENCE) patience->left++;
        return;
    }
    patience->left /= 2;
    patience->sleeps = SHMP__MOST_SLEEPS / (patience->left + 1);
}

#endif
