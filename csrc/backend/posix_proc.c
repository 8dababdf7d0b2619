#include "os/platform.h"
#if SHMP_HAVE_POSIX
#include "backend/posix_proc.h"

#if SHMP_HAVE_LINUX
#include "backend/proc_id.h"
#include "backend/unix.h"

/* Each file system counts inodes of its own: the device is in it too. */
static uint32_t check_of(const shmp__os_file *file) {
    return (uint32_t)((file->inode * 0x9e3779b97f4a7c15ull ^ file->device * 0xc2b2ae3d27d4eb4full) >> 32);
}

static int check(const shmp__mapping *mapping, int seen, const shmp__proc_id *meant, const char *id,
                 shmp_error *reterr) {
    shmp__os_file file;
    int result = shmp__fd_stat(seen, &file, reterr);
    if (result < 0) return result;
    if (!file.is_regular || check_of(&file) != meant->check) return shmp__proc_fail_gone(meant, id, reterr);
    return shmp__check_user(mapping, file.user, "fstat", id, reterr);
}

static const shmp__proc_kind of_posix = {.may_be = shmp__os_fd_is_in_shm_place, .check = check};

int shmp__posix_locate(shmp__mapping *mapping, char ret_id[SHMP__ID_SIZE], shmp_error *reterr) {
    int fd = shmp__fd(mapping)->fd;
    shmp__os_file file;
    int result = shmp__fd_stat(fd, &file, reterr);
    return result < 0 ? result : shmp__proc_id_of(fd, check_of(&file), ret_id, reterr);
}

int shmp__posix_open_fd(const shmp__mapping *mapping, const char *id, shmp_error *reterr) {
    shmp__proc_id meant;
    if (shmp__proc_id_parse(id, &meant)) return shmp__proc_open(&of_posix, mapping, &meant, id, reterr);
    return shmp__fail(reterr, SHMP_EID, "shmp_open_fd", "\"%s\" is not what shmp_locate gives", id);
}

#else /* there is no /proc to open another process's descriptor by */

int shmp__posix_locate(shmp__mapping *mapping, char ret_id[SHMP__ID_SIZE], shmp_error *reterr) {
    (void)mapping, (void)ret_id;
    return shmp__fail(reterr, SHMP_EUNSUPPORTED, "shmp_locate", "this system has no /proc/<pid>/fd: attach by the id");
}

int shmp__posix_open_fd(const shmp__mapping *mapping, const char *id, shmp_error *reterr) {
    (void)mapping;
    return shmp__fail(reterr, SHMP_EUNSUPPORTED, "shmp_open_fd", "\"%s\": this system has no /proc/<pid>/fd", id);
}

#endif
#endif
