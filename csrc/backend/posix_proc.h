/* posix segments by a descriptor of some process, whether they have a name or not. */
#ifndef SHMP_POSIX_PROC_H
#define SHMP_POSIX_PROC_H

#include "core/core.h"

int shmp__posix_locate(shmp__mapping *mapping, char ret_id[SHMP__ID_SIZE], shmp_error *reterr);
int shmp__posix_open_fd(const shmp__mapping *mapping, const char *id, shmp_error *reterr);

#endif
