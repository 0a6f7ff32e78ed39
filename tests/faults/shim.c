/* Breaks the host of a process that is started with this in LD_PRELOAD: its clock, its names, its disk.
 *
 * What is broken is in the file that FAULTS_CONTROL names; shim.py writes it. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

struct control {
    int64_t clock_offset; /* seconds that the clock is ahead */
    int32_t disk_full;    /* whether files of the backup cannot grow */
    int32_t disk_delay;   /* microseconds that it takes to write them to the disk */
    char address[48];     /* of memcached.test; empty: the name cannot be resolved */
};

static const char NAME[] = "memcached.test";
static volatile struct control *control;

static void attach(void) __attribute__((constructor));

static void attach(void)
{
    const char *path = getenv("FAULTS_CONTROL");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0)
        return;
    void *map = mmap(NULL, sizeof *control, PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (map != MAP_FAILED)
        control = map;
}

/* The clock. That of CLOCK_MONOTONIC, and of files, goes on as it is. */

int clock_gettime(clockid_t id, struct timespec *now)
{
    int result = (int)syscall(SYS_clock_gettime, id, now);
    if (result == 0 && control && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE))
        now->tv_sec += control->clock_offset;
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    struct timespec precise;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *where)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (where)
        *where = now.tv_sec;
    return now.tv_sec;
}

/* Names. */

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **found)
{
    static int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **);
    char address[sizeof control->address];
    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "getaddrinfo");
    if (control && node && strcmp(node, NAME) == 0) {
        memcpy(address, (const char *)control->address, sizeof address);
        if (!*address)
            return EAI_AGAIN;
        node = address;
    }
    return real(node, service, hints, found);
}

/* The disk, for files with "backup" in their path. */

static int is_backup(int file)
{
    char link[40], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    path[length < 0 ? 0 : length] = 0;
    return strstr(path, "backup") != NULL;
}

static int has_room(int file, off_t end)
{
    struct stat status;
    if (!control || !control->disk_full || !is_backup(file) || fstat(file, &status) || end <= status.st_size)
        return 1;
    errno = ENOSPC;
    return 0;
}

ssize_t pwrite(int file, const void *data, size_t size, off_t offset)
{
    return has_room(file, offset + (off_t)size) ? syscall(SYS_pwrite64, file, data, size, offset) : -1;
}

ssize_t pwrite64(int file, const void *data, size_t size, off64_t offset)
{
    return pwrite(file, data, size, offset);
}

ssize_t writev(int file, const struct iovec *parts, int count)
{
    off_t end = 0;
    if (control && control->disk_full) {
        end = lseek(file, 0, SEEK_CUR);
        for (int each = 0; end >= 0 && each < count; each++)
            end += (off_t)parts[each].iov_len;
    }
    return has_room(file, end) ? syscall(SYS_writev, file, parts, count) : -1;
}

static void delay(int file)
{
    if (control && control->disk_delay && is_backup(file))
        usleep((useconds_t)control->disk_delay);
}

int fdatasync(int file)
{
    delay(file);
    return (int)syscall(SYS_fdatasync, file);
}

int fsync(int file)
{
    delay(file);
    return (int)syscall(SYS_fsync, file);
}
